"""From a proposal to a certified state: vote by rule 3, count votes, fetch the bytes that are missing, apply.

Functions of `Core`; each may be called at any moment and does only what has become possible.
"""

from atoll.p2p.round.core import Core
from atoll.p2p.round.decree import result_digests
from atoll.p2p.round.effects import Commit, Note, Save, Send
from atoll.protocol.certificate import FIRST_JOURNAL, Certificate, Value, Vote
from atoll.protocol.messages import BlobKind, Cert, Voted


def vote(core: Core) -> None:
    """Rule 3: vote as soon as the ballot is not below the promise, every byte is held and the state comes out alike."""
    decree, pending = core.decree, core.decree.pending
    if pending is None or not core.votes or (decree.vote is not None and decree.vote.ballot >= pending.ballot):
        return
    value, tip = pending.value, decree.tip
    if pending.ballot < decree.acceptor.promised:
        return
    fetch(core, value)
    agrees = decree.agrees(value)
    if agrees is None:
        return
    acceptor = decree.acceptor.accept(pending.ballot, value)
    if not agrees or acceptor is None or decree.contradicts_announcements(value):
        decree.pending = None
        core.out.append(
            Note("proposal_refused", f"this peer does not arrive at the state proposed in ballot {pending.ballot}")
        )
        return
    decree.acceptor = acceptor
    core.out.append(Save(tip.id, acceptor.promised, acceptor.accepted, result_digests(value.parts)))
    cast(core, Vote.cast(core.identity, FIRST_JOURNAL, pending.ballot, value))


def cast(core: Core, vote: Vote) -> None:
    core.decree.vote = vote
    core.decree.tally.add(vote, core.chain.tip.electorate)
    core.to_voters(Voted(vote))


def certify(core: Core) -> None:
    decree = core.decree
    if decree.certificate is None:
        decree.certificate = decree.tally.certificate(decree.values, decree.tip.electorate)
        if decree.certificate is not None and (decree.proposer is not None or core.leader == core.me):
            for peer in sorted(core.known):
                core.out.append(Send(peer, Cert(decree.certificate)))


def apply(core: Core, certificate: Certificate) -> None:
    decree, value = core.decree, certificate.value
    if decree.committing:
        return
    fetch(core, value)
    agrees = decree.agrees(value)
    if agrees:
        decree.committing = True
        core.out.append(Commit(certificate))
    elif agrees is False:
        decree.committing = True
        core.out.append(
            Note("nondeterministic_cpu", "this machine's arithmetic does not arrive at the certified state")
        )


def fetch(core: Core, value: Value) -> None:
    """Step what is stored of a value's results and ask for the rest: owners first, then whoever voted, then anybody."""
    decree, exchange = core.decree, core.decree.exchange
    for part, result in decree.unstepped(value):
        if result in decree.stored:
            core.step(part, result)
        elif (part, result) not in decree.stepping:
            owner = exchange.owners[part : part + 1]
            voters = [vote.peer for vote in (decree.certificate.votes if decree.certificate else ())]
            holders = dict.fromkeys([*owner, core.leader, *voters, *sorted(core.known)])
            core.wants.need(BlobKind.RESULT, result, [p for p in holders if p != core.me])
            core.wanted_part[result] = part
