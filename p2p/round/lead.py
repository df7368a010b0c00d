"""When a voter opens a ballot, and what its leader does in it (rules 4, 10, 11): START, moving parts of owners that
died, PROPOSE.

Functions of `Core` and the time; each may be called at any moment and does only what has become due.
"""

from collections.abc import Iterable

from atoll.p2p.round import certify
from atoll.p2p.round.core import Core
from atoll.p2p.round.effects import Note
from atoll.p2p.round.exchange import assign, run_lengths
from atoll.p2p.round.synod import Proposer
from atoll.protocol.digest import ZERO_DIGEST
from atoll.protocol.identity import PeerId
from atoll.protocol.manifest import MAX_CONTRIBUTORS
from atoll.protocol.messages import Prepare, Propose, Start

MOST_TIMES_MEDIAN = 8


def closing_at(core: Core, now: float) -> float | None:
    """When the round may be closed. Rule 11: by duration or tokens where the manifest says so, and else when everybody
    worth waiting for is READY, or grace has passed since the first; for a voter that leaves, at once.
    """
    decree, settings = core.decree, core.settings
    if decree.acceptor.accepted is not None or core.tip.bound is not None:
        return decree.learned_at  # the outcome is known already
    earliest = decree.learned_at + settings.min_round_s
    due = None
    if decree.first_ready_at is not None:
        waiting = _waits_for_somebody(core, now)
        due = max(earliest, decree.first_ready_at + settings.grace_s if waiting else decree.first_ready_at)
    if due is None and core.trains and decree.empty and not _anybody_trains(core, now):
        due = earliest + settings.grace_s  # nobody has anything to give under this base: the empty value ends it
    if settings.round_s > 0 and _anybody_trains(core, now):
        by_duration = decree.learned_at + settings.round_s
        due = by_duration if due is None else min(due, by_duration)
    if settings.round_tokens > 0 and _target_reached(core, now):
        due = max(earliest, decree.target_at or now)
    if _a_voter_leaves(core, now) and (due is not None or _anybody_trains(core, now)):
        # At once where somebody has something to give; else when trainers have had time for a step.
        return decree.learned_at + (0.0 if decree.first_ready_at is not None else 2 * settings.heartbeat_s)
    return due


def _waits_for_somebody(core: Core, now: float) -> bool:
    heads = core.decree.exchange.heads
    if core.trains and not core.decree.empty and core.me not in heads:
        return True
    for peer, presence in core.pace.peers.items():
        ready = presence.ready
        if (
            ready is not None and ready.trains and peer not in heads and ready.round >= core.tip.round - 1
            and not ready.leaving and core.pace.present(peer, now)
        ):
            return True
    return any(
        p != core.me and p not in core.pace.peers and core.pace.awaited(p, now) for p in core.tip.voters
    )


def _anybody_trains(core: Core, now: float) -> bool:
    if core.trains and not core.decree.empty:
        return True
    return any(r.trains for peer in core.pace.alive(now) if (r := core.pace.ready(peer, now)) is not None)


def _target_reached(core: Core, now: float) -> bool:
    decree = core.decree
    if decree.target_at is None:
        trained = decree.exchange.heads[core.me].tokens if core.me in decree.exchange.heads else core.tokens
        for peer, presence in core.pace.peers.items():
            ready = presence.ready
            if ready is not None and ready.base == core.tip.base and core.pace.present(peer, now):
                trained += ready.tokens
        if trained >= core.settings.round_tokens:
            decree.target_at = now
    return decree.target_at is not None


def _a_voter_leaves(core: Core, now: float) -> bool:
    return (core.leaving and core.votes) or any(
        p in core.tip.voters and core.pace.present(p, now) for p in core.pace.leavers
    )


def turn_at(core: Core, now: float) -> float | None:
    """When this voter opens its next ballot: at once if no living leader comes before it, else after delta for each."""
    decree, tip = core.decree, core.tip
    closing = None if decree.certificate is not None or decree.acceptor.left or core.finished or not core.votes else (
        closing_at(core, now))
    turn = next_ballot(core)
    if closing is None or turn is None:
        return None
    base = max(closing, decree.progress_at)
    living = core.pace.count_awaited(tip.leaders_between(max(decree.ballot, 0), turn), core.me, now)
    if decree.proposer is not None and decree.proposer.ballot == decree.ballot:
        living += 1  # this peer's own ballot comes to nothing
        base = max(base, decree.exchange.grace_ends)
    elif decree.ballot >= 0 and decree.pending is None and core.pace.awaited(core.leader, now):
        base = max(base, decree.exchange.grace_ends)  # its leader lives and may still be waiting for a slow member
    return base + core.settings.ballot_timeout_s * decree.delta_factor * living


def next_ballot(core: Core) -> int | None:
    """The next ballot that this peer leads, above all that it has heard of, promised or accepted."""
    decree, tip = core.decree, core.tip
    at_least = max(decree.ballot, decree.acceptor.promised if decree.used else -1) + 1
    return tip.next_turn(core.me, at_least)


def take_turn(core: Core, now: float) -> None:
    at = turn_at(core, now)
    if at is None or now < at:
        return
    decree, tip = core.decree, core.tip
    ballot = next_ballot(core)
    members = sorted(peer for peer in decree.exchange.heads if peer == core.me or core.pace.present(peer, now))
    late = [p for p in core.pace.alive(now) if (r := core.pace.ready(p, now)) and r.base == tip.base and r.trains]
    late += [core.me] if core.trains and not decree.empty else []
    if ballot is None:
        return
    if ballot > 0:
        acceptor = decree.acceptor.promise(ballot)
        if acceptor is None:
            return
        core.remember(acceptor)
    core.heard_ballot(ballot, now)
    decree.proposer = Proposer(ballot)
    decree.proposer.promises[core.me] = decree.acceptor.accepted
    expected = _first_the_known(core, {*members, *late} or {core.me})
    able = [peer for peer in members if peer in expected] or list(expected)
    rates = shares(core, _proven(core, able), now)
    open_exchange(core, ballot, tuple(sorted(expected)), assign(core.shape.parts, rates), now)
    if ballot > 0:
        core.to_voters(Prepare(tip.id, ballot))


def _first_the_known(core: Core, peers: set[PeerId]) -> frozenset[PeerId]:
    """As many as a START may name: voters first, then those who have contributed before."""
    streaks = core.tip.standings.streaks
    order = sorted(peers, key=lambda peer: (peer not in core.tip.voters, -streaks.get(peer, 0), peer))
    return frozenset(order[:MAX_CONTRIBUTORS])


def _proven(core: Core, peers: list[PeerId]) -> list[PeerId]:
    """Who may own parts: voters and contributors of the last round, unless there are none; a stranger could hold up
    the round by owning what it never reduces.
    """
    known = [p for p in peers if p == core.me or p in core.tip.voters or p in core.tip.standings.streaks]
    return known or peers


def shares(core: Core, peers: Iterable[PeerId], now: float) -> dict[PeerId, int]:
    """Upload rates by which parts are assigned, 0 where unknown; a claim counts for at most a few times the median."""
    rates = {peer: _rate(core, peer, now) for peer in peers}
    claimed = sorted(rate for rate in rates.values() if rate > 0)
    most = MOST_TIMES_MEDIAN * claimed[len(claimed) // 2] if claimed else 0
    return {peer: min(rate, most) for peer, rate in rates.items()}


def _rate(core: Core, peer: PeerId, now: float) -> int:
    ready = core.pace.ready(peer, now)
    return core.rate_bps if peer == core.me else ready.rate_bps if ready is not None else 0


def open_exchange(core: Core, ballot: int, members: tuple[PeerId, ...], owners: tuple[PeerId, ...], now: float) -> None:
    decree = core.decree
    grace_ms = int(core.settings.grace_s * 1000)
    previous = decree.exchange.start
    again = previous.attempt + 1 if previous is not None and previous.ballot == ballot else 0
    attempt = max(again, int(now) % (1 << 30))  # newer than that of this peer before a restart
    start = Start(decree.tip.id, ballot, attempt, members, run_lengths(owners, members), grace_ms)
    decree.exchange.begin(start, now)
    decree.progress_at = now
    core.freeze()
    core.to_round(start)


def reassign(core: Core, now: float) -> None:
    """As leader, move the parts of owners that went away, or that are long past grace, to others."""
    decree, exchange = core.decree, core.decree.exchange
    proposer, start = decree.proposer, exchange.start
    if proposer is None or start is None or proposer.value is not None or start.ballot != proposer.ballot:
        return
    overdue = now >= exchange.grace_ends + core.settings.ballot_timeout_s
    lost = {
        o for o in exchange.late_owners(decree.usable) if o != core.me and (overdue or not core.pace.present(o, now))
    }
    if not lost:
        return
    members = tuple(p for p in start.members if p not in lost and (p == core.me or core.pace.present(p, now)))
    able = [p for p in members if p in exchange.heads]
    if not able:
        return
    moved = assign(sum(1 for o in exchange.owners if o in lost), shares(core, _proven(core, able), now))
    spare = iter(moved)
    owners = tuple(next(spare) if owner in lost else owner for owner in exchange.owners)
    core.out.append(Note("owner_gone", f"{len(moved)} parts of {len(lost)} peers that went away are reduced by others"))
    open_exchange(core, start.ballot, tuple(sorted({*members, *owners})), owners, now)


def propose(core: Core, now: float) -> None:
    """Once a quorum has promised: the value of the highest ballot accepted among the promises, else this peer's own."""
    decree = core.decree
    proposer = decree.proposer
    if proposer is None or not proposer.may_propose(decree.tip.electorate) or decree.acceptor.left:
        return
    bound = proposer.bound()
    value = bound or decree.own_value(
        core.chain.policy, core.attendees(), core.all_records(), may_be_empty=_may_be_empty(core, now))
    if value is None:
        return
    decree.values[value.id] = value
    propose = decree.pending = Propose(proposer.ballot, value, bound is not None)
    certify.vote(core)
    if bound is not None or (decree.vote is not None and decree.vote.ballot == proposer.ballot):
        proposer.value, proposer.said = value, propose
        decree.progress_at = now
        core.to_voters(propose)


def may_contribute(core: Core, peer: PeerId, now: float) -> bool:
    """Whether to go on waiting for this member's bytes."""
    heads = core.decree.exchange.heads
    if peer == core.me:
        return core.trains and not core.decree.empty and core.me not in heads
    ready = core.pace.ready(peer, now)
    return ready is not None and (ready.trains or peer in heads) and ready.round <= core.tip.round


def _may_be_empty(core: Core, now: float) -> bool:
    """Rule 4: from ballot 1 on a leader that holds no contribution at all may propose the empty value."""
    decree, exchange = core.decree, core.decree.exchange
    proposer = decree.proposer
    if proposer is None or proposer.ballot < 1 or exchange.anything_held or exchange.start is None:
        return False
    if now < exchange.grace_ends and any(may_contribute(core, peer, now) for peer in exchange.start.members):
        return False
    for part in range(core.shape.parts):
        core.step(part, ZERO_DIGEST)  # the chunks as they are
    return True
