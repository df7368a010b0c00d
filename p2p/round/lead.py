"""When a voter opens a ballot, and what its leader does in it (rule 4): START,
moving parts of owners that died, PROPOSE.

Functions of `Core` and the time; each may be called at any moment and does only what has become due.
"""

from atoll.p2p.round import certify
from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.core import Core
from atoll.p2p.round.effects import Note, Save
from atoll.p2p.round.exchange import assign, run_lengths
from atoll.p2p.round.synod import Proposer
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import Prepare, Propose, Start


def closing_at(core: Core, now: float) -> float | None:
    """When the round may be closed: everybody worth waiting for is READY, or grace has passed since the first."""
    decree, tip = core.decree, core.chain.tip
    if decree.first_ready_at is None:
        return None
    heads, waiting = decree.exchange.heads, False
    for peer, presence in core.pace.peers.items():
        ready = presence.ready
        if ready is not None and ready.trains and peer not in heads and core.pace.present(peer, now):
            waiting = waiting or ready.round >= tip.round - 1
    waiting = waiting or (core.trains and not decree.empty and core.me not in heads)
    waiting = waiting or any(
        p != core.me and p not in core.pace.peers and core.pace.awaited(p, now)
        for p in electorates.peers(tip.electorate)
    )
    earliest = decree.learned_at + core.settings.min_round_s
    return max(earliest, decree.first_ready_at + core.settings.grace_s if waiting else decree.first_ready_at)


def turn_at(core: Core, now: float) -> float | None:
    """When this voter opens its next ballot: at once if no living leader comes before it, else after delta for each."""
    decree, tip = core.decree, core.chain.tip
    closing = closing_at(core, now)
    if closing is None or decree.certificate is not None or core.finished:
        return None
    used = decree.acceptor.promised > 0 or decree.acceptor.accepted is not None
    at_least = max(decree.ballot, decree.acceptor.promised if used else -1) + 1
    turn = electorates.next_turn(tip.id, tip.electorate, core.me, at_least)
    if turn is None or (decree.proposer is not None and decree.proposer.ballot == decree.ballot):
        return None
    before = {electorates.leader(tip.id, tip.electorate, ballot) for ballot in range(max(decree.ballot, 0), turn)} - {
        core.me
    }
    living = sum(1 for peer in before if core.pace.awaited(peer, now))
    base = max(closing, decree.progress_at)
    if decree.ballot >= 0 and decree.pending is None and core.pace.awaited(core.leader, now):
        base = max(base, decree.exchange.grace_ends)  # its leader lives and may still be waiting for a slow member
    return base + core.settings.ballot_timeout_s * decree.delta_factor * living


def take_turn(core: Core, now: float) -> None:
    at = turn_at(core, now)
    if at is None or now < at:
        return
    decree, tip = core.decree, core.chain.tip
    used = decree.acceptor.promised > 0 or decree.acceptor.accepted is not None
    ballot = electorates.next_turn(
        tip.id, tip.electorate, core.me, max(decree.ballot, decree.acceptor.promised if used else -1) + 1
    )
    members = sorted(peer for peer in decree.exchange.heads if peer == core.me or core.pace.present(peer, now))
    late = [p for p in core.pace.alive(now) if (r := core.pace.ready(p, now)) and r.tip == tip.id and r.trains]
    late += [core.me] if core.trains and not decree.empty else []
    if ballot is None or not members:
        return
    if ballot > 0:
        acceptor = decree.acceptor.promise(ballot)
        if acceptor is None:
            return
        decree.acceptor = acceptor
        core.out.append(Save(tip.id, acceptor.promised, acceptor.accepted))
    core.heard_ballot(ballot, now)
    decree.proposer = Proposer(ballot)
    decree.proposer.promises[core.me] = decree.acceptor.accepted
    rates = {peer: rate(core, peer, now) for peer in members}
    open_exchange(core, ballot, tuple(sorted({*members, *late})), assign(core.shape.parts, rates), now)
    if ballot > 0:
        core.to_voters(Prepare(tip.id, ballot))


def rate(core: Core, peer: PeerId, now: float) -> int:
    ready = core.pace.ready(peer, now)
    return core.rate_bps if peer == core.me else ready.rate_bps if ready is not None else 0


def open_exchange(core: Core, ballot: int, members: tuple[PeerId, ...], owners: tuple[PeerId, ...], now: float) -> None:
    decree = core.decree
    grace_ms = int(core.settings.grace_s * 1000)
    start = Start(decree.tip.id, ballot, int(now * 1000), members, run_lengths(owners, members), grace_ms)
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
    moved = assign(sum(1 for o in exchange.owners if o in lost), {p: rate(core, p, now) for p in able})
    spare = iter(moved)
    owners = tuple(next(spare) if owner in lost else owner for owner in exchange.owners)
    core.out.append(Note("owner_gone", f"{len(moved)} parts of {len(lost)} peers that went away are reduced by others"))
    open_exchange(core, start.ballot, tuple(sorted({*members, *owners})), owners, now)


def propose(core: Core, now: float) -> None:
    decree = core.decree
    proposer = decree.proposer
    if proposer is None or not proposer.may_propose(decree.tip.electorate):
        return
    bound = proposer.bound()
    value = bound or decree.own_value()
    if value is None:
        return
    decree.values[value.id] = value
    propose = decree.pending = Propose(proposer.ballot, value)
    certify.vote(core)
    if bound is not None or (decree.vote is not None and decree.vote.ballot == proposer.ballot):
        proposer.value = value
        decree.progress_at = now
        core.to_voters(propose)
