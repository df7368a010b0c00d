"""What each message does, once the table has let it through: functions of `Core`, named as the messages are.

They take note, promise and answer; what follows from that is tried afterwards, by `round`.
"""

from atoll.p2p.round import follow, lastballot
from atoll.p2p.round.chain import Link, check_value
from atoll.p2p.round.core import Core
from atoll.p2p.round.effects import Note, Send
from atoll.p2p.round.exchange import Head
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MalformedError, SignatureError
from atoll.protocol.fork import Fork
from atoll.protocol.identity import PeerId, peer_name
from atoll.protocol.messages import (
    Blob,
    BlobKind,
    Cert,
    Get,
    Prepare,
    Promise,
    Propose,
    Ready,
    Start,
    Voted,
)

ANSWER_PAUSE_S = 0.2
MAX_ANSWERS = 4096


def answer(core: Core, peer: PeerId, parent: Digest, now: float) -> None:
    """CERT answers any message whose parent has a child whose state is held, or else names this peer's tip."""
    link = core.chain.child(parent) or core.chain.link(core.tip.id)
    if link is not None and now >= core.answered.get((peer, parent), -1.0) + ANSWER_PAUSE_S:
        _note_answer(core, peer, parent, now)
        core.out.append(Send(peer, Cert(link)))


def _note_answer(core: Core, peer: PeerId, link: Digest, now: float) -> None:
    if len(core.answered) > MAX_ANSWERS:
        core.answered.clear()
    core.answered[peer, link] = now


def ready(core: Core, peer: PeerId, ready: Ready, now: float) -> bool:
    """Whether the READY says anything new."""
    tip = core.tip
    presence = core.pace.peers.get(peer)
    before = presence.ready if presence is not None else None
    returned = core.pace.heard(peer, now, ready)
    if returned and not ready.leaving:
        core.out.append(Send(peer, core.ready()))
    if ready.base == tip.base:
        _announced(core, peer, ready, now)
    if ready.tip != tip.id:
        elsewhere(core, peer, ready, now)
    return returned or before is None or _says(core, before) != _says(core, ready)


def _says(core: Core, ready: Ready) -> tuple[object, ...]:
    """What of a READY can make anything possible."""
    tokens = ready.tokens if core.settings.round_tokens and core.decree.target_at is None else 0
    return ready.tip, ready.base, ready.root, ready.record, ready.trains, tokens


def _announced(core: Core, peer: PeerId, ready: Ready, now: float) -> None:
    if ready.record is not None:
        core.note_record(peer, ready.record)
    else:
        core.records.pop(peer, None)
    if ready.root is not None and ready.tokens > 0:
        if not core.decree.exchange.announce(peer, Head(ready.root, ready.tokens, ready.journal)):
            core.out.append(
                Note("two_contributions", f"{peer_name(peer)} announced two contributions under one parent", peer)
            )
        core.note_ready(now)


def elsewhere(core: Core, peer: PeerId, ready: Ready, now: float) -> None:
    """The peer is not where this one is: tell it what it lacks, or ask for what this one lacks."""
    if ready.tip in core.chain:
        if now < core.decree.learned_at + core.settings.heartbeat_s:
            return  # the certificate is still on its way to everybody, from its leader
        if core.chain.child(ready.tip) is not None or ready.base not in (core.tip.base, core.tip.id):
            answer(core, peer, ready.tip, now)
    elif now >= core.asked.get(peer, -1.0) + ANSWER_PAUSE_S:
        core.asked[peer] = now
        core.out.append(Send(peer, Get(BlobKind.LINK, core.orphans.missing(ready.tip))))


def get(core: Core, peer: PeerId, get: Get, now: float) -> None:
    link = core.chain.link(get.digest) if get.content is BlobKind.LINK else None
    if link is not None and now >= core.answered.get((peer, link.id), -1.0) + ANSWER_PAUSE_S:
        _note_answer(core, peer, link.id, now)
        core.out.append(Send(peer, Cert(link)))


def cert(core: Core, peer: PeerId, link: Link) -> None:
    for new in follow.learn(core, peer, link):
        if isinstance(new, Fork):
            lastballot.note_fork(core, new)
        else:
            core.decree.values.setdefault(new.id, new.value)


def start(core: Core, peer: PeerId, start: Start, now: float) -> None:
    decree, tip = core.decree, core.tip
    current = decree.exchange.start
    if start.parent != tip.id or peer != tip.leader(start.ballot):
        return
    if start.ballot < decree.acceptor.promised:
        return
    if current is not None and (start.ballot, start.attempt) <= (current.ballot, current.attempt):
        return
    try:
        decree.exchange.begin(start, now)
    except MalformedError as error:
        core.out.append(Note("bad_start", f"{peer_name(peer)}: {error}", peer))
        return
    core.heard_ballot(start.ballot, now)
    decree.progress_at = now
    core.freeze()


def prepare(core: Core, peer: PeerId, prepare: Prepare, now: float) -> None:
    decree, tip, journal = core.decree, core.tip, core.voting_journal
    if prepare.nonce is not None:
        last(core, peer, prepare, now)
        return
    if prepare.parent != tip.id or journal is None or peer != tip.leader(prepare.ballot):
        return
    acceptor = decree.acceptor.promise(prepare.ballot)
    if acceptor is None or (acceptor.accepted is not None and acceptor.accepted[0] >= prepare.ballot):
        return
    if acceptor != decree.acceptor:
        core.remember(acceptor)
    core.heard_ballot(prepare.ballot, now)
    core.out.append(Send(peer, Promise(tip.id, prepare.ballot, journal, acceptor.accepted)))


def last(core: Core, peer: PeerId, prepare: Prepare, now: float) -> None:
    if prepare.nonce is not None and prepare.parent == core.tip.id:
        lastballot.answer(core, peer, prepare, now)


def promise(core: Core, peer: PeerId, promise: Promise, now: float) -> None:
    decree, tip = core.decree, core.tip
    if promise.parent != tip.id:
        return
    try:
        if promise.accepted is not None:
            check_value(promise.accepted[1], tip, core.shape.sizes, core.chain.policy)
        if promise.last is not None:
            lastballot.promised(core, peer, promise)
            return
    except (MalformedError, SignatureError) as error:
        core.out.append(Note("bad_promise", f"{peer_name(peer)}: {error}", peer))
        return
    if decree.proposer is None or decree.proposer.ballot != promise.ballot:
        return
    named = any(entry.peer == peer and entry.journal == promise.journal for entry in tip.countable)
    if named and peer not in decree.proposer.promises:
        decree.proposer.promises[peer] = promise.accepted
        decree.progress_at = now


def propose(core: Core, peer: PeerId, propose: Propose, now: float) -> None:
    decree, tip = core.decree, core.tip
    if propose.parent != tip.id or peer != tip.leader(propose.ballot):
        return
    if decree.pending is not None and propose.ballot <= decree.pending.ballot:
        if decree.vote is not None and propose.ballot == decree.vote.ballot:
            core.out.append(Send(peer, Voted(decree.vote)))
        return
    try:
        check_value(propose.value, tip, core.shape.sizes, core.chain.policy)
    except (MalformedError, SignatureError) as error:
        core.out.append(Note("bad_proposal", f"{peer_name(peer)}: {error}", peer))
        return
    core.heard_ballot(propose.ballot, now)
    decree.progress_at = now
    decree.pending = propose
    decree.values[propose.value.id] = propose.value


def vote(core: Core, peer: PeerId, message: Voted, now: float) -> None:
    vote, tally = message.vote, core.decree.tally
    if vote.parent != core.tip.id:
        return
    try:
        vote.check()
    except SignatureError as error:
        core.out.append(Note("bad_vote", f"{peer_name(peer)}: {error}", peer))
        return
    if tally.contradiction(vote) is not None:
        core.banned[vote.peer] = now
        core.pace.forget(vote.peer)
        twice = f"{peer_name(vote.peer)} voted for two values in ballot {vote.ballot}"
        core.out.append(Note("equivocation", twice, vote.peer))
    elif tally.add(vote, core.tip.countable):
        core.decree.progress_at = now


def late_vote(core: Core, peer: PeerId, message: Voted) -> None:
    """A vote for what is certified already: attendance."""
    vote, above = message.vote, core.chain.parent(core.tip.id)
    if above is None or vote.parent != above or vote.peer in core.attendance:
        return
    if not any(e.peer == vote.peer and e.journal == vote.journal for e in core.chain.tip_of(above).countable):
        return
    try:
        vote.check()
    except SignatureError as error:
        core.out.append(Note("bad_vote", f"{peer_name(peer)}: {error}", peer))
        return
    core.attendance[vote.peer] = vote


def hold(core: Core, peer: PeerId, blob: Blob, leaves: tuple[Digest, ...] | None, now: float) -> None:
    decree = core.decree
    if blob.parent != core.tip.base:
        return
    try:
        decree.exchange.hold(peer, blob, leaves)
    except MalformedError as error:
        core.out.append(Note("bad_leaves", f"{peer_name(peer)}: {error}", peer))
        return
    decree.progress_at = now
    if blob.content is BlobKind.RESULT:
        core.results_held[blob.digest] = blob.parent
        core.gathered = False
        core.step(blob.part, blob.digest)
