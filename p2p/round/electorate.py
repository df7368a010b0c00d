"""Who votes, what a quorum is, who leads which ballot (DESIGN rules 2 and 4). Pure functions of the chain.

The electorate is fixed at genesis for now: `successor` is where admission, eviction and leaving will come in, and every
voter already recomputes it before it votes.
"""

import functools
from collections.abc import Collection

from blake3 import blake3

from atoll.protocol.certificate import FIRST_JOURNAL, Voter
from atoll.protocol.digest import Digest
from atoll.protocol.identity import PeerId

Electorate = tuple[Voter, ...]
"""Voters by seniority, the most senior first."""


def genesis(peers: tuple[PeerId, ...]) -> Electorate:
    """The electorate that a manifest names."""
    return tuple(Voter(peer, FIRST_JOURNAL) for peer in peers)


def successor(electorate: Electorate) -> Electorate:
    """The electorate that the next certificate must name."""
    return electorate


def is_quorum(electorate: Electorate, voters: Collection[PeerId]) -> bool:
    """More than half of the electorate, or exactly half including its most senior entry."""
    present = sum(1 for entry in electorate if entry.peer in voters)
    return 2 * present > len(electorate) or (2 * present == len(electorate) and electorate[0].peer in voters)


def peers(electorate: Electorate) -> tuple[PeerId, ...]:
    return tuple(entry.peer for entry in electorate)


@functools.lru_cache(maxsize=256)
def leaders(parent: Digest, electorate: Electorate) -> tuple[PeerId, ...]:
    """The order in which voters lead: a permutation seeded by the parent; entry b modulo its length leads ballot b."""
    return tuple(sorted(peers(electorate), key=lambda peer: blake3(parent + peer).digest()))


def leader(parent: Digest, electorate: Electorate, ballot: int) -> PeerId:
    order = leaders(parent, electorate)
    return order[ballot % len(order)]


def next_turn(parent: Digest, electorate: Electorate, peer: PeerId, at_least: int) -> int | None:
    """The first ballot from `at_least` on that `peer` leads; None if it does not vote."""
    order = leaders(parent, electorate)
    if peer not in order:
        return None
    return at_least + (order.index(peer) - at_least) % len(order)
