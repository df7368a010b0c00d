"""Who votes, what a quorum is, who leads which ballot, and who votes next (DESIGN rules 2, 4 and 6).

Pure functions of the chain and of what a value says; every voter recomputes them before it votes.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from atoll.protocol.certificate import FIRST_JOURNAL, Contribution, Voter
from atoll.protocol.digest import Digest
from atoll.protocol.errors import SignatureError
from atoll.protocol.fork import LastPromise, Rank
from atoll.protocol.identity import PeerId
from atoll.protocol.manifest import MAX_ELECTORATE
from atoll.protocol.standing import Record, Standing

Electorate = tuple[Voter, ...]
"""Voters by seniority, the most senior first."""


def genesis(peers: tuple[PeerId, ...]) -> Electorate:
    """The electorate that a manifest names."""
    return tuple(Voter(peer, FIRST_JOURNAL) for peer in peers)


def is_quorum(electorate: Electorate, voters: Collection[PeerId]) -> bool:
    """More than half of the electorate, or exactly half including its most senior entry."""
    present = sum(1 for entry in electorate if entry.peer in voters)
    return 2 * present > len(electorate) or (2 * present == len(electorate) and electorate[0].peer in voters)


def peers(electorate: Electorate) -> tuple[PeerId, ...]:
    return tuple(entry.peer for entry in electorate)


def leaders(parent: Digest, electorate: Electorate) -> tuple[PeerId, ...]:
    """The order in which voters lead: a permutation seeded by the parent; entry b modulo its length leads ballot b."""
    return tuple(sorted(peers(electorate), key=lambda peer: blake3(parent + peer).digest()))


def leads(order: tuple[PeerId, ...], ballot: int) -> PeerId:
    return order[ballot % len(order)]


def turn(order: tuple[PeerId, ...], peer: PeerId, at_least: int) -> int | None:
    """The first ballot from `at_least` on that `peer` leads; None if it does not vote."""
    return at_least + (order.index(peer) - at_least) % len(order) if peer in order else None


# Who votes next.


@dataclass(frozen=True)
class Policy:
    """What the manifest says about admission."""

    run_id: Digest
    owner: PeerId
    admit_after: int  # rounds in a row with a contribution; 0: only with the owner's ticket


@dataclass(frozen=True)
class Standings:
    """What a certificate leaves behind for the next electorate to be computed from."""

    electorate: Electorate
    decided_by: tuple[PeerId, ...] = ()  # the electorate that certified it; nobody for genesis and a FORK
    contributors: frozenset[PeerId] = frozenset()
    idle: frozenset[PeerId] = frozenset()  # voters without a vote or a contribution in the round before it
    streaks: Mapping[PeerId, int] = field(default_factory=dict)  # rounds in a row contributed to, up to admit_after


def attended(decided_by: tuple[PeerId, ...], attendance: bytes) -> frozenset[PeerId]:
    """The voters on the parent that a value's bitmap names."""
    return frozenset(peer for i, peer in enumerate(decided_by) if attendance[i >> 3] >> (i & 7) & 1)


def successor(
    before: Standings, policy: Policy, contributions: Iterable[Contribution], attendance: bytes,
    records: Iterable[Record],
) -> Standings:
    """The standings after a value with these contributions, attendance on its parent, and records.

    Two rounds without a vote or a contribution evict. LEAVE and CANNOT_VOTE, then admissions, apply in order, each
    only where those who contribute and stay (for a LEAVE: or voted on the parent) are a quorum of what results.
    """
    contributing = frozenset(c.peer for c in contributions)
    present = attended(before.decided_by, attendance)
    absent = frozenset(before.decided_by) & frozenset(peers(before.electorate)) - present - before.contributors
    electorate = _without_idle(before.electorate, absent & before.idle - contributing)
    ordered = list(records)
    electorate = _under_new_journals(electorate, ordered)
    electorate = _without_leavers(electorate, ordered, contributing | present)
    streaks = before.streaks
    if contributing:
        most = max(policy.admit_after, 1)
        streaks = {peer: min(most, before.streaks.get(peer, 0) + 1) for peer in sorted(contributing)}
    electorate = _with_newcomers(electorate, ordered, contributing, streaks, policy)
    idle = absent & frozenset(peers(electorate))
    return Standings(electorate, peers(before.electorate), contributing, idle, streaks)


def survivors(before: Standings, promises: tuple[LastPromise, ...], rank: Rank) -> Standings:
    """The standings behind a FORK: its signers vote, by seniority where they voted before, else by PeerID."""
    journals = {promise.peer: promise.journal for promise in promises}
    order = peers(before.electorate) if rank is Rank.VOTERS else tuple(sorted(journals))
    electorate = tuple(Voter(peer, journals[peer]) for peer in order if peer in journals)
    return Standings(electorate[:MAX_ELECTORATE], streaks=before.streaks)


def _without_idle(electorate: Electorate, idle: frozenset[PeerId]) -> Electorate:
    kept = tuple(entry for entry in electorate if entry.peer not in idle)
    return kept or electorate[:1]


def _under_new_journals(electorate: Electorate, records: Iterable[Record]) -> Electorate:
    """A voter whose journal is new, or was not named yet, keeps its seniority: the next decree is another instance."""
    journals = {record.peer: record.journal for record in records if record.kind is Standing.JOIN}
    return tuple(Voter(entry.peer, journals.get(entry.peer, entry.journal)) for entry in electorate)


def _without_leavers(electorate: Electorate, records: Iterable[Record], active: frozenset[PeerId]) -> Electorate:
    going = [record.peer for record in records if record.kind in (Standing.LEAVE, Standing.CANNOT_VOTE)]
    staying = active - frozenset(going)
    for peer in going:
        rest = tuple(entry for entry in electorate if entry.peer != peer)
        if rest and is_quorum(rest, staying):
            electorate = rest
    return electorate


def _with_newcomers(
    electorate: Electorate, records: Iterable[Record], contributing: frozenset[PeerId], streaks: Mapping[PeerId, int],
    policy: Policy,
) -> Electorate:
    for record in records:
        if record.kind is not Standing.JOIN or record.peer in peers(electorate) or len(electorate) >= MAX_ELECTORATE:
            continue
        earned = policy.admit_after > 0 and streaks.get(record.peer, 0) >= policy.admit_after
        grown = (*electorate, Voter(record.peer, record.journal))
        if (earned or _invited(record, policy)) and is_quorum(grown, contributing):
            electorate = grown
    return electorate


def _invited(record: Record, policy: Policy) -> bool:
    try:
        return record.has_ticket(policy.run_id, policy.owner)
    except SignatureError:
        return False
