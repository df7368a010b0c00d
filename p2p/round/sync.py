"""Bytes that this peer lacks and asks others for: one holder after another, each with a deadline."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from atoll.p2p.round.effects import Send
from atoll.protocol.digest import Digest
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import BlobKind, Get

MOST_AT_ONCE = 16


@dataclass
class Want:
    content: BlobKind
    holders: list[PeerId]
    base: Digest  # of the round that the bytes belong to
    part: int
    asked: PeerId | None = None
    deadline: float = 0.0
    refused: set[PeerId] = field(default_factory=set)


class Wants:
    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self.open: dict[Digest, Want] = {}

    def need(self, content: BlobKind, digest: Digest, holders: Iterable[PeerId], base: Digest, part: int) -> None:
        """Ask for a blob, of these peers in this order; peers named later are added behind."""
        want = self.open.setdefault(digest, Want(content, [], base, part))
        want.holders += [peer for peer in holders if peer not in want.holders]

    def arrived(self, digest: Digest) -> Want | None:
        """The blob is stored; what it was wanted for, if it was."""
        return self.open.pop(digest, None)

    def missing(self, digest: Digest, peer: PeerId) -> None:
        """`peer` answered that it does not have the blob."""
        want = self.open.get(digest)
        if want is not None and want.asked == peer:
            want.refused.add(peer)
            want.asked = None

    def progress(self, digest: Digest, peer: PeerId, now: float) -> None:
        """Bytes of the blob keep coming: no reason to ask elsewhere."""
        want = self.open.get(digest)
        if want is not None and want.asked == peer:
            want.deadline = now + self.patience_s

    def wanted(self, digest: Digest) -> Want | None:
        return self.open.get(digest)

    def stranded(self, present: Callable[[PeerId], bool]) -> bool:
        """Whether there is a blob that every present holder has said it does not have."""
        return any(
            want.refused and all(peer in want.refused for peer in want.holders if present(peer))
            for want in self.open.values()
        )

    def forget(self, bases: Collection[Digest]) -> None:
        """What belongs to these rounds is not needed any more."""
        self.open = {digest: want for digest, want in self.open.items() if want.base not in bases}

    def requests(self, now: float, present: Callable[[PeerId], bool], first: Digest) -> list[Send]:
        """GETs that are due, those of the round `first` before others.

        A holder that did not answer in time is put last; when all refused, all are asked anew.
        """
        out = []
        under_way = sum(1 for want in self.open.values() if want.asked is not None and now < want.deadline)
        for digest, want in sorted(self.open.items(), key=lambda item: item[1].base != first):
            if want.asked is not None and now < want.deadline and present(want.asked):
                continue
            if under_way >= MOST_AT_ONCE:
                break
            if want.asked is not None:
                want.holders.append(want.holders.pop(want.holders.index(want.asked)))
                want.asked = None
            candidates = [peer for peer in want.holders if present(peer) and peer not in want.refused]
            if not candidates:
                if want.refused and now >= want.deadline:
                    want.refused.clear()
                    want.deadline = now + self.patience_s
                continue
            want.asked, want.deadline = candidates[0], now + self.patience_s
            under_way += 1
            out.append(Send(candidates[0], Get(want.content, digest)))
        return out

    def next_deadline(self, now: float) -> float:
        return min((want.deadline for want in self.open.values() if want.deadline > now), default=now + 3600)
