"""A home's ticket reaches the round if the run's owner signed it for this peer, and is told of if not."""

import pytest

from atoll.p2p.carrier import Carrier
from atoll.protocol.identity import Identity
from atoll.protocol.standing import sign_ticket

GUEST = Identity(b"\2" * 32)


@pytest.fixture
async def opened(run):
    """`await opened(ticket of the run)`: a guest's carrier, its round resumed."""
    made = []

    async def open_one(ticket):
        peer = run()
        carrier = Carrier(
            None, GUEST, peer.manifest, peer.store, peer.blobs, trains=True, ticket=ticket(peer.manifest), spawn=None)
        made.append(carrier)
        await carrier.open()
        return carrier

    yield open_one
    for carrier in made:
        carrier.close()


OWNER = Identity(b"\1" * 32)


async def test_the_owners_ticket_is_given_to_the_round(opened):
    carrier = await opened(lambda manifest: sign_ticket(OWNER, manifest.run_id, GUEST.peer_id))
    assert carrier.round.ticket == sign_ticket(OWNER, carrier.round.chain.policy.run_id, GUEST.peer_id)
    assert "bad_ticket" not in carrier.notes


@pytest.mark.parametrize("ticket", [
    lambda manifest: sign_ticket(GUEST, manifest.run_id, GUEST.peer_id),
    lambda manifest: sign_ticket(OWNER, manifest.run_id, OWNER.peer_id),
    lambda manifest: sign_ticket(OWNER, bytes(32), GUEST.peer_id),
])
async def test_a_ticket_that_nobody_would_heed_is_told_of_and_not_shown(opened, ticket):
    carrier = await opened(ticket)
    assert carrier.round.ticket == b""
    assert "--ticket" in carrier.notes["bad_ticket"]


async def test_no_ticket_is_none(opened):
    carrier = await opened(lambda manifest: b"")
    assert (carrier.round.ticket, carrier.notes.get("bad_ticket")) == (b"", None)
