"""From a proposal to a certificate: vote by rule 3, count votes, and fetch the bytes that are missing for it.

Functions of `Core`; each may be called at any moment and does only what has become possible.
"""

from atoll.p2p.round.core import Core
from atoll.p2p.round.decree import result_digests
from atoll.p2p.round.effects import Note, Send
from atoll.protocol.certificate import Certificate, Value, Vote
from atoll.protocol.digest import ZERO_DIGEST
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import BlobKind, Cert, Voted
from atoll.protocol.standing import Standing


def vote(core: Core) -> None:
    """Rule 3: vote as soon as the ballot is not below the promise, every byte is held and the state comes out alike."""
    decree, pending, journal = core.decree, core.decree.pending, core.voting_journal
    if pending is None or journal is None or (decree.vote is not None and decree.vote.ballot >= pending.ballot):
        return
    value = pending.value
    if pending.ballot < decree.acceptor.promised or decree.acceptor.left:
        return
    fetch(core, value, [])
    agrees = decree.agrees(value)
    if agrees is None:
        return
    acceptor = decree.acceptor.accept(pending.ballot, value)
    # A value that was accepted before has to be voted for as it is, or no ballot would ever succeed.
    contradicts = not pending.carried and decree.contradicts_announcements(value)
    if not agrees or acceptor is None or contradicts:
        decree.pending = None
        core.out.append(
            Note("proposal_refused", f"this peer does not arrive at the state proposed in ballot {pending.ballot}")
        )
        return
    wronged = [] if pending.carried else wrongly_evicted(core, value)
    if wronged:
        decree.pending = None
        held = [core.attendance[peer] for peer in wronged if peer in core.attendance]
        core.out += [Send(core.leader, Voted(vote)) for vote in held if core.leader != core.me]
        core.out.append(Note("proposal_refused", f"ballot {pending.ballot} evicts {len(wronged)} voters that voted"))
        return
    core.remember(acceptor, result_digests(value.parts))
    core.cast(Vote.cast(core.identity, journal, pending.ballot, value))


def wrongly_evicted(core: Core, value: Value) -> list[PeerId]:
    """Voters that the value evicts for their silence, and that this peer knows to have voted for the parent."""
    going = {r.peer for r in value.records if r.kind in (Standing.LEAVE, Standing.CANNOT_VOTE)}
    evicted = set(core.tip.voters) - {entry.peer for entry in value.electorate} - going
    return sorted(evicted & core.attendees())


def vote_late(core: Core, certificate: Certificate) -> None:
    """A voter that learns of the certificate before it could vote says that it holds the state, too: its attendance.

    Only for the newest certificate, as nobody counts older ones, and only under a journal of its own: what was promised
    under the one that genesis names may have gone with a disk.
    """
    decree, journal, value = core.decree, core.voting_journal, certificate.value
    if journal is None or journal != core.journal or core.chain.lineages.best != value.id:
        return
    if decree.vote is not None and decree.vote.certificate == value.id:
        return
    acceptor = decree.acceptor.accept(certificate.ballot, value)
    if acceptor is not None:
        core.remember(acceptor, result_digests(value.parts))
        core.cast(Vote.cast(core.identity, journal, certificate.ballot, value))


def certify(core: Core) -> None:
    """Turn a quorum's votes into a certificate, take it into the tree, and tell everybody if this peer led."""
    decree = core.decree
    if decree.certificate is not None or decree.tip.id != core.tip.id or not decree.tally.votes:
        return
    certificate = decree.tally.certificate(decree.values, decree.tip.electorate)
    if certificate is None or certificate.id in core.chain:
        return
    core.chain.add(certificate)
    core.gathered = False
    if decree.proposer is not None or core.leader == core.me:
        core.to_known(Cert(certificate))


def fetch(core: Core, value: Value, holders: list[PeerId]) -> bool:
    """Step what is stored of a value's results under the tip and ask for the rest; whether nothing is asked for."""
    decree, complete = core.decree, True
    for part, result in decree.unstepped(value):
        if result == ZERO_DIGEST or result in core.results_held:
            core.step(part, result)
        elif (part, result) not in decree.stepping:
            owner = decree.exchange.owners[part : part + 1]
            want(core, decree.tip.base, part, value, [*owner, core.leader, *holders])
            complete = False
    return complete


def want(core: Core, base: bytes, part: int, value: Value, holders: list[PeerId]) -> None:
    """Ask for one result: of those who should have it first, then of anybody."""
    order = dict.fromkeys([*holders, *sorted(core.known)])
    result = value.parts[part].digest
    core.wants.need(BlobKind.RESULT, result, [p for p in order if p != core.me], base, part)
