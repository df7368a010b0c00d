"""The last ballot: when the quorum is gone for long, survivors go on in a new lineage that says so (rule 6).

After failed ballots and a long timeout an initiator asks for last promises; those that arrive in its window are the
FORK. A peer enters the largest FORK that it signed, then the one of the smallest id. Functions of `Core` and the time;
each may be called at any moment and does only what has become due.
"""

from blake3 import blake3

from atoll.p2p.round import follow
from atoll.p2p.round.chain import Tip
from atoll.p2p.round.core import Core
from atoll.p2p.round.decree import LastBallot
from atoll.p2p.round.effects import Note, Send
from atoll.p2p.round.electorate import is_quorum
from atoll.p2p.round.pace import NEWCOMER_FACTOR
from atoll.p2p.round.synod import evidence
from atoll.protocol.fork import NONCE_BYTES, Fork, LastPromise, Rank
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import Cert, Prepare, Promise

FAILED_BALLOTS = 2


def window_s(core: Core) -> float:
    """How long an initiator collects promises: delta, at least twice the worst one-way latency."""
    return core.settings.ballot_timeout_s


def due_at(core: Core, now: float) -> float | None:
    """When this peer initiates a last ballot, or closes the window of its own; None while there is no reason to."""
    decree = core.decree
    if decree.certificate is not None or core.adopting is not None or core.finished:
        return None
    if decree.last is not None:
        return decree.last.until
    if decree.acceptor.left:
        return decree.left_at + 2 * window_s(core) + _jitter_s(core)
    rank = _rank(core, now)
    since = None if rank is None else _stalled_since(core, rank)
    if rank is None or since is None:
        return None
    size, patience = len(core.tip.voters), core.settings.fork_timeout_s(len(core.tip.voters))
    wait_s = patience * size * (1 / len(core.voters_present(now)) if rank is Rank.VOTERS else rank)
    return max(since, core.pace.woke_at) + wait_s + _jitter_s(core)


def _rank(core: Core, now: float) -> Rank | None:
    """The class of signers that this peer may call upon; None while a better one has somebody alive."""
    if core.me in core.tip.voters:
        return Rank.VOTERS
    if core.voters_present(now) or core.tip.round == 0:
        return None
    recent = core.chain.recent(core.tip.base)
    if core.me in recent:
        return Rank.CONTRIBUTORS
    return None if any(core.pace.present(peer, now) for peer in recent) else Rank.HOLDERS


def _stalled_since(core: Core, rank: Rank) -> float | None:
    decree = core.decree
    if rank is Rank.VOTERS:
        if core.votes:
            return decree.stalled_at if decree.failed >= FAILED_BALLOTS else None
        return decree.progress_at  # it cannot lead a ballot under the journal it has
    unheard = core.pace.started_at + NEWCOMER_FACTOR * core.settings.gone_after_s
    silent = [p.gone_at if (p := core.pace.peers.get(peer)) is not None else unheard for peer in core.tip.voters]
    return max([decree.learned_at, *silent])


def _jitter_s(core: Core) -> float:
    """Up to a window, by peer and parent, so that few initiate at once."""
    seed = blake3(core.tip.id + core.me).digest()
    return window_s(core) * int.from_bytes(seed[:4], "little") / 2**32


def initiate(core: Core, now: float) -> None:
    """Open a last ballot, or close the window of one, once that is due."""
    due = due_at(core, now)
    if due is None or now < due:
        return
    if core.decree.last is not None:
        _close(core, now)
        return
    rank = _rank(core, now)
    if rank is None:  # it had signed for others; a better class is back
        core.decree.left_at = now
        return
    nonce = blake3(core.tip.id + core.me + core.journal + int(now * 1e6).to_bytes(8, "little")).digest()[:NONCE_BYTES]
    _leave(core, now)
    last = core.decree.last = LastBallot(nonce, rank, now + window_s(core))
    last.promises[core.me] = _last_promise(core, nonce, rank), core.decree.acceptor.accepted
    allowed = core.chain.may_sign(core.tip, rank)
    asked = core.known if allowed is None else allowed
    core.out += [Send(peer, Prepare(core.tip.id, 0, nonce, rank)) for peer in sorted(asked) if peer != core.me]


def _leave(core: Core, now: float) -> None:
    if not core.decree.acceptor.left:
        core.remember(core.decree.acceptor.leave())
    core.decree.left_at = now


def _last_promise(core: Core, nonce: bytes, rank: Rank) -> LastPromise:
    accepted = core.decree.acceptor.accepted
    said = None if accepted is None else (accepted[0], accepted[1].id)
    journal = core.voting_journal or core.journal
    return LastPromise.sign(core.identity, core.tip.id, nonce, rank, journal, said)


def answer(core: Core, peer: PeerId, prepare: Prepare, now: float) -> None:
    """PREPARE(last): never vote here again, durably, and say what was accepted; again for another initiator, too."""
    allowed = core.chain.may_sign(core.tip, prepare.rank)
    if prepare.nonce is None or core.decree.certificate is not None:
        return
    if allowed is not None and not {peer, core.me} <= allowed:
        return
    if _sees_a_quorum(core, now) or (prepare.rank is not Rank.VOTERS and not _half_convinced(core, prepare.rank, now)):
        return
    _leave(core, now)
    last, accepted = _last_promise(core, prepare.nonce, prepare.rank), core.decree.acceptor.accepted
    core.out.append(Send(peer, Promise(core.tip.id, 0, last.journal, accepted, last)))


def _half_convinced(core: Core, rank: Rank, now: float) -> bool:
    """Whether this peer, too, has seen none of the voters for half of the time after which it would initiate."""
    since, size = _stalled_since(core, rank), len(core.tip.voters)
    if core.voters_present(now) or since is None:
        return False
    return now >= max(since, core.pace.woke_at) + core.settings.fork_timeout_s(size) * size * rank / 2


def _sees_a_quorum(core: Core, now: float) -> bool:
    """Whether this voter has no reason to leave: a quorum is there, and has not been stalled for half of L."""
    there = core.voters_present(now)
    return core.votes and is_quorum(core.tip.electorate, there) and not core.stalled(now)


def promised(core: Core, peer: PeerId, promise: Promise) -> None:
    """An answer to this peer's own last ballot. Raises SignatureError, MalformedError."""
    last, said = core.decree.last, promise.last
    if last is None or said is None or said.nonce != last.nonce or said.rank is not last.rank:
        return
    said.check()
    allowed = core.chain.may_sign(core.tip, last.rank)
    if allowed is None or peer in allowed:
        last.promises.setdefault(peer, (said, promise.accepted))


def _close(core: Core, now: float) -> None:
    """The window is over: whoever has promised is the FORK."""
    last = core.decree.last
    if last is None:
        return
    core.decree.last = None
    signed = tuple(last.promises[peer][0] for peer in sorted(last.promises))
    bound = evidence(signed, core.tip.countable)
    values = [accepted[1] for _, accepted in last.promises.values() if accepted is not None]
    value = None if bound is None else next(value for value in values if value.id == bound[1])
    fork = Fork(core.tip.id, last.nonce, last.rank, signed, value)
    core.out.append(Note("fork", f"the quorum of round {core.tip.round + 1} is gone: {len(signed)} of "
                         f"{len(core.tip.voters)} voters go on in a new lineage"))
    core.chain.add(fork)
    note_fork(core, fork)
    core.to_known(Cert(fork))
    choose(core, now)


def choose(core: Core, now: float) -> None:
    """Enter the largest FORK that this peer signed, then that of the smallest id; an empty one may be left for it."""
    parent = _parent(core)
    if parent is None or core.adopting is not None or core.decree.certificate is not None:
        return
    signed = [fork for fork in core.forks.get(parent.id, []) if core.me in fork.signers]
    if not signed:
        return
    best = min(signed, key=lambda fork: (-len(fork.promises), fork.id))
    if best.id != core.tip.id:
        follow.enter(core, best, now)


def _parent(core: Core) -> Tip | None:
    """Where this peer has left: the tip itself, or what the empty FORK it is in follows."""
    if core.memory_of(core.tip.id).left:
        return core.tip
    above = core.chain.parent(core.tip.id) if core.tip.is_fork else None
    return None if above is None else core.chain.tip_of(above)


def note_fork(core: Core, fork: Fork) -> None:
    """Remember a FORK that came into the tree."""
    core.forks.setdefault(fork.parent, []).append(fork)


