"""Following the chain: fetch the bytes of every known certificate, and go where fork choice points (rule 7).

The tip moves one link at a time along a lineage: a FORK is entered, a certificate applied. Only where the choice lies
on another lineage the outer state is rebuilt. Functions of `Core`; each does only what has become possible.
"""

from atoll.p2p.round import certify
from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Link, parent_of
from atoll.p2p.round.core import Core
from atoll.p2p.round.effects import Adopt, Commit, Enter, Note, Send
from atoll.protocol.certificate import Certificate
from atoll.protocol.digest import ZERO_DIGEST
from atoll.protocol.errors import MalformedError, SignatureError
from atoll.protocol.fork import Fork, Rank
from atoll.protocol.identity import PeerId, peer_name
from atoll.protocol.messages import BlobKind, Get

MAX_AHEAD = 1024  # results that are asked for at a time


def learn(core: Core, peer: PeerId, link: Link) -> list[Link]:
    """Take a link from a peer into the tree, with whatever waited for it; the links that are new."""
    todo, new = [(link, peer)], []
    core.gathered = False
    while todo:
        link, sender = todo.pop()
        if link.id in core.chain:
            continue
        if parent_of(link) not in core.chain:
            if link.id not in core.orphans:
                core.orphans.keep(link, sender)
                core.out.append(Send(sender, Get(BlobKind.LINK, parent_of(link))))
            continue
        try:
            core.chain.add(link)
        except (MalformedError, SignatureError) as error:
            core.out.append(Note("bad_certificate", f"{peer_name(sender)}: {error}", sender))
            continue
        new.append(link)
        if isinstance(link, Certificate) and len(core.wants.open) < MAX_AHEAD:
            _complete(core, link)  # ask ahead: its turn comes when the certificates before it are held
        todo += core.orphans.children(link.id)
    return new


def gather(core: Core) -> None:
    """Ask for the result bytes of every certificate behind a held state; a certificate whose bytes are here is held."""
    lineages = core.chain.lineages
    while not core.gathered:
        core.gathered = True
        for name in lineages.frontier():
            certificate = core.chain.link(name)
            if isinstance(certificate, Certificate) and name not in core.abandoned and _complete(core, certificate):
                lineages.hold(name)
                core.gathered = False


def _complete(core: Core, certificate: Certificate) -> bool:
    value = certificate.value
    base = core.chain.tip_of(value.parent).base
    held = core.results_held
    missing = [(i, p.digest) for i, p in enumerate(value.parts) if p.digest != ZERO_DIGEST and p.digest not in held]
    for part, result in missing:
        if not core.wants.wanted(result):
            certify.want(core, base, part, value, [vote.peer for vote in certificate.votes])
    return not missing


def follow(core: Core, now: float) -> None:
    """Go one link towards the choice; again after each, until bytes have to be waited for."""
    while core.adopting is None and not core.decree.committing:
        lineages, best = core.chain.lineages, core.chain.lineages.best
        if best == core.tip.base:
            return
        if not lineages.is_ancestor(core.tip.base, best):
            core.adopting = best
            core.out.append(Adopt(best))
            return
        if not lineages.is_ancestor(core.tip.id, best):
            core.chain.move(core.tip.base)  # out of a FORK that came to nothing: the state is the same
            core.decree = core.new_decree(now)
        link = next_link(core, best)
        if isinstance(link, Fork):
            if stays(core, link, now):
                return
            enter(core, link, now)
        else:
            apply(core, link, now)
            return


def give_up(core: Core, target: bytes, lost: bytes) -> None:
    """Bytes of `lost`, on the way to `target`, are gone: do not count its lineage until they are fetched again.

    Where they are gone from the path that both share, the other lineage branched off too long ago to be reached.
    """
    if core.chain.on_path(lost):
        lost = next(link.id for link in core.chain.lineage(target)
                    if isinstance(link, Certificate) and not core.chain.on_path(link.id))
        core.abandoned.add(lost)
    core.chain.lineages.lose(lost)
    link = core.chain.link(lost)
    for part in link.value.parts if isinstance(link, Certificate) else ():
        core.results_held.pop(part.digest, None)
    core.gathered = False


def stays(core: Core, fork: Fork, now: float) -> bool:
    """Whether a lineage behind a FORK at the tip has to wait: those whom it gave up are here, and getting on.

    Their certificate will outweigh it. Without this anybody's FORK could take everybody out of a round under way.
    """
    if core.stalled(now):
        return False
    here = core.voters_here(now)
    return bool(here) if fork.rank is not Rank.VOTERS else electorates.is_quorum(core.tip.electorate, here)


def next_link(core: Core, target: bytes) -> Link:
    """The first link behind the tip on the way to `target`, its descendant."""
    name = target
    while True:
        link = core.chain.link(name)
        if link is None:
            raise ValueError("the target does not descend from the tip")
        if parent_of(link) == core.tip.id:
            return link
        name = parent_of(link)


def enter(core: Core, fork: Fork, now: float) -> None:
    """Go on behind a FORK: the state stays, contributions and results are inherited."""
    core.out.append(Enter(fork))
    if core.tip.id != fork.parent:
        core.chain.move(fork.parent)
    core.chain.move(fork.id)
    core.decree = core.new_decree(now)
    core.vote_again()
    core.broadcast_ready(now)


def apply(core: Core, certificate: Certificate, now: float) -> None:
    """Compute the certified state, and commit it once it comes out right."""
    decree, value = core.decree, certificate.value
    decree.certificate = certificate
    certify.fetch(core, value, [vote.peer for vote in certificate.votes])
    agrees = decree.agrees(value)
    if agrees:
        certify.vote_late(core, certificate)
        decree.committing = True
        core.out.append(Commit(certificate, dropped(core, certificate, now)))
    elif agrees is False:
        decree.committing = True
        core.out.append(
            Note("nondeterministic_cpu", "this machine's arithmetic does not arrive at the certified state")
        )


def dropped(core: Core, certificate: Certificate, now: float) -> tuple[tuple[PeerId, str], ...]:
    """Who fell out of the round, and where: `train` sent nothing, `scatter` not all, `vote` (a voter) did not vote."""
    value, start = certificate.value, core.decree.exchange.start
    listed = {c.peer: i for i, c in enumerate(value.contributions)}
    whole = {p for p, i in listed.items() if all(part.includes(i) for part in value.parts)}
    story: dict[PeerId, str] = {}
    for peer in start.members if start is not None else ():
        if peer not in listed:
            story[peer] = "scatter" if peer in core.decree.exchange.heads else "train"
        elif peer not in whole:
            story[peer] = "scatter"
    voted = {vote.peer for vote in certificate.votes}
    voted |= core.decree.tally.voters_for(value.id).keys()
    for peer in core.tip.voters:
        if peer not in voted and peer != core.me and not core.pace.present(peer, now):
            story.setdefault(peer, "vote")
    return tuple(sorted(story.items()))
