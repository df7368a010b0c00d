"""Which lineage wins: fork choice, a pure function of the links known and of the states held (DESIGN rule 7).

At each branching each child stands for its own best descendant, and the children are compared by `credit`. Only
certificates whose state is held count; a lineage counts up to its last one, and a FORK without one does not exist.

The tree is kept compressed: a `_Branching` is a link with two live children or more, a `_Lane` the run from one of
them down to the next branching or to the end. What has happened below a lane is carried up branching by branching,
and only while a choice changes; growth of the chosen end costs a step per branching above it and no comparison.

It knows nothing of votes, signatures, bytes and of how states are fetched: `chain` checks the links before they come
here, `round` tells what is held and follows `best`. Callers' mistakes are ValueError, unknown ids are KeyError.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

from atoll.protocol.digest import Digest
from atoll.protocol.identity import PeerId


@dataclass(frozen=True, slots=True)
class Node:
    """What fork choice needs to know of a link: a certificate, a FORK, or genesis (the one without a parent)."""

    id: Digest
    parent: Digest | None
    is_fork: bool
    rank: int  # of a FORK, 1 to 3, the lower the better; 0 for a certificate and genesis
    electorate: tuple[PeerId, ...]  # who votes on its children
    contributors: frozenset[PeerId]  # of a certificate; empty for a FORK and genesis


class _Entry:
    """A known link in the tree. `live` are its children that count, `followers` the certificates next behind it."""

    __slots__ = ("base", "branching", "depth", "followers", "held", "jump", "lane", "live", "node", "parent")

    def __init__(self, node: Node, parent: Optional["_Entry"]) -> None:
        self.node = node
        self.held = False
        self.live: list[_Entry] = []
        self.followers: list[_Entry] = []
        self.branching: _Branching | None = None
        self.lane: _Lane | None = None  # the lane that ends here, if one does
        self.parent = self.base = self.jump = self
        self.depth = 0
        if parent is not None:
            self.parent = parent
            self.base = parent.base if parent.node.is_fork else parent  # nearest certified ancestor
            self.depth = parent.depth + 1
            # Myers' jump pointers: one more pointer an entry finds any ancestor in logarithmic time
            far = parent.jump
            even = parent.depth - far.depth == far.depth - far.jump.depth
            self.jump = far.jump if even else parent

    def ancestor(self, depth: int) -> "_Entry":
        entry = self
        while entry.depth > depth:
            entry = entry.jump if entry.jump.depth >= depth else entry.parent
        return entry

    def end(self) -> "_Entry":
        """Where the lane through this live entry ends: at a branching, or at the last held certificate."""
        entry = self
        while entry.branching is None and entry.live:
            entry = entry.live[0]
        return entry


class _Branching:
    """A link with several live children. `lane` is the one it ends, `best` the chosen one of its own."""

    __slots__ = ("best", "lane", "lanes", "named", "top")

    def __init__(self, top: _Entry, lane: "_Lane", horizon: int) -> None:
        self.top = top
        self.lane = lane
        self.lanes: list[_Lane] = []
        named: set[PeerId] = set()
        entry = top.base if top.node.is_fork else top
        for _ in range(min(horizon, top.depth)):  # genesis has no contributors
            named |= entry.node.contributors
            entry = entry.base
        self.named = named  # contributors of the last K certificates
        self.best: _Lane


class _Lane:
    """The run below one child of a branching, standing for its best held certificate, `tip`.

    Its score covers the path from the branching to `_scored`, and is brought up to `tip` when a comparison asks for it.
    """

    __slots__ = ("_credit", "_familiar", "_known", "_rank", "_scored", "branching", "child", "end", "tip")

    def __init__(self, branching: _Branching | None, child: _Entry, end: _Entry, tip: _Entry) -> None:
        self.branching = branching  # None: the lane that starts at genesis, which nothing is compared with
        self.child = child
        self.tip = tip
        self.end_at(end)
        self._scored: _Entry | None = None
        self._credit = 0
        self._rank = 0  # of the first FORK on the path, 0 before there is one
        self._familiar = 0
        self._known: set[PeerId] = set()

    def end_at(self, end: _Entry) -> None:
        self.end = end
        end.lane = self
        if end.branching is not None:
            end.branching.lane = self

    def key(self) -> tuple[int, int, int, Digest]:
        """The least of a branching's keys wins: most credit, lowest rank, most contributions by the named, least id."""
        branching = self.branching
        assert branching is not None
        steps, entry = [], self.tip
        while entry is not self._scored and entry is not branching.top:
            steps.append(entry)
            entry = entry.parent
        if entry is not self._scored:  # another tip was chosen below
            self._restart(branching)
        for entry in reversed(steps):
            self._count(entry.node, branching)
        self._scored = self.tip
        return -self._credit, self._rank, -self._familiar, self.child.node.id

    def _restart(self, branching: _Branching) -> None:
        self._scored = branching.top
        self._credit = self._rank = self._familiar = 0
        self._known = set(branching.top.node.electorate)

    def _count(self, node: Node, branching: _Branching) -> None:
        size = len(branching.top.node.electorate)
        if node.is_fork:
            self._rank = self._rank or node.rank
            return
        if self._rank:  # behind a FORK only those count that the branching, or what came before the FORK, knows
            self._credit += min(size, len(node.contributors & self._known))
        else:  # a quorum speaks for all
            self._credit += size
            self._known.update(node.electorate)
        self._familiar += len(node.contributors & branching.named)


class Lineages:
    """All lineages known from genesis on, and the certificate to follow, `best`: genesis' id if none is held."""

    def __init__(self, genesis: Node, horizon: int) -> None:
        """`horizon` is the K of "named in the last K certificates"."""
        if horizon < 1:
            raise ValueError(f"a horizon of {horizon} certificates names nobody; it must be at least 1")
        if genesis.parent is not None or genesis.is_fork:
            raise ValueError("genesis has no parent and is no FORK")
        self._horizon = horizon
        self._genesis = _Entry(genesis, None)
        self._genesis.held = True
        self._entries = {genesis.id: self._genesis}
        self._frontier: dict[Digest, None] = {}
        self._root = _Lane(None, self._genesis, self._genesis, self._genesis)

    @property
    def best(self) -> Digest:
        return self._root.tip.node.id

    def __contains__(self, link: Digest) -> bool:
        return link in self._entries

    def holds(self, certificate: Digest) -> bool:
        return self._entries[certificate].held

    def add(self, node: Node) -> None:
        """Know a link whose parent is known; its state is not held yet. Adding it again changes nothing."""
        if node.id in self._entries:
            return
        if node.parent is None or node.is_fork != (1 <= node.rank <= 3):
            raise ValueError(f"a link has a parent, and a FORK alone a rank of 1 to 3; this one says {node.rank}")
        entry = _Entry(node, self._entries[node.parent])
        self._entries[node.id] = entry
        if not node.is_fork:
            entry.base.followers.append(entry)
            if entry.base.held:
                self._frontier[node.id] = None

    def hold(self, certificate: Digest) -> None:
        """Its state is held, hence all result bytes up to it; its nearest certified ancestor must be held."""
        entry = self._entries[certificate]
        if entry.held:
            return
        if entry.node.is_fork or not entry.base.held:
            raise ValueError("only a certificate can be held, and only behind held ones: hold its ancestors first")
        entry.held = True
        self._frontier.pop(certificate)
        self._frontier.update((follower.node.id, None) for follower in entry.followers)
        child, parent = entry, entry.parent
        parent.live.append(child)
        while parent.node.is_fork and len(parent.live) == 1:  # a FORK exists from its first held certificate on
            child, parent = parent, parent.parent
            parent.live.append(child)
        if len(parent.live) == 1:
            lane = parent.lane
            assert lane is not None  # a held certificate with nothing behind it ended one
            parent.lane = None
            lane.end_at(entry)
            lane.tip = entry
            # Behind no FORK the path's credit only grows and its rank stays: where it was chosen, it still is.
            self._rise(lane, grown=parent is entry.parent)
        else:
            branching = parent.branching or self._split(parent)
            lane = _Lane(branching, child, entry, entry)
            branching.lanes.append(lane)
            self._rise(lane)

    def lose(self, certificate: Digest) -> None:
        """Its bytes turned out gone or unusable: it and its descendants count no longer, until they are held again.

        One that was not held only goes to the back of the frontier.
        """
        entry = self._entries[certificate]
        if entry is self._genesis or entry.node.is_fork:
            raise ValueError("genesis and FORKs have no result bytes to lose; name the certificate whose are gone")
        if not entry.held:
            if certificate in self._frontier:
                self._frontier.pop(certificate)
                self._frontier[certificate] = None
            return
        lane = entry.end().lane
        assert lane is not None
        self._forget(entry)
        self._frontier[certificate] = None
        child, parent = entry, entry.parent
        parent.live.remove(child)
        while parent.node.is_fork and not parent.live:
            child, parent = parent, parent.parent
            parent.live.remove(child)
        branching = parent.branching
        if branching is None:
            lane.end_at(parent)
            lane.tip = parent
            self._rise(lane)
        else:
            branching.lanes.remove(lane)
            self._narrow(branching, lane)

    def path(self, link: Digest) -> list[Digest]:
        """The links from genesis to this one, oldest first, without genesis and with it."""
        entry, links = self._entries[link], []
        while entry is not self._genesis:
            links.append(entry.node.id)
            entry = entry.parent
        return links[::-1]

    def is_ancestor(self, ancestor: Digest, link: Digest) -> bool:
        """Whether `link` is `ancestor` or descends from it; logarithmic in the chain's length."""
        above = self._entries[ancestor]
        return self._entries[link].ancestor(above.depth) is above

    def frontier(self) -> tuple[Digest, ...]:
        """What to fetch next: certificates not held, whose nearest certified ancestor is; those that were lost last."""
        return tuple(self._frontier)

    def _rise(self, lane: _Lane, *, grown: bool = False) -> None:
        """Carry a lane's new tip up, as far as it changes something; `grown`: it is the old one's certified child."""
        while lane.branching is not None:
            branching = lane.branching
            if branching.best is not lane:
                branching.best = _least((branching.best, lane))
                grown = False
            elif not grown:
                branching.best = _least(branching.lanes)
            tip, lane = branching.best.tip, branching.lane
            if lane.tip is tip:
                return
            lane.tip = tip

    def _split(self, top: _Entry) -> _Branching:
        """Make a branching of an entry in the midst of a lane, whose lower half becomes its first lane."""
        first = top.live[0]
        end = first.end()
        upper = end.lane
        assert upper is not None
        branching = top.branching = _Branching(top, upper, self._horizon)
        branching.best = _Lane(branching, first, end, upper.tip)
        branching.lanes.append(branching.best)
        upper.end_at(top)
        return branching

    def _narrow(self, branching: _Branching, lost: _Lane) -> None:
        """One of a branching's lanes is gone: choose anew; a single one left joins the lane above."""
        upper = branching.lane
        if branching.best is lost:
            branching.best = _least(branching.lanes)
        if len(branching.lanes) == 1:
            branching.top.branching = branching.top.lane = None
            upper.end_at(branching.best.end)
        if upper.tip is not branching.best.tip:
            upper.tip = branching.best.tip
            self._rise(upper)

    def _forget(self, entry: _Entry) -> None:
        """Unhold a certificate and all behind it; what was to be fetched behind it is not any more."""
        lost = [entry]
        while lost:
            entry = lost.pop()
            if not entry.held:
                self._frontier.pop(entry.node.id, None)
                continue
            entry.held = False
            lost.extend(entry.followers)
            for follower in entry.followers:  # FORKs between a certificate and those behind it end with them
                link = follower.parent
                while link is not entry and link.live:  # not once more for each follower
                    link.live, link.branching, link.lane = [], None, None
                    link = link.parent
            entry.live, entry.branching, entry.lane = [], None, None


def _least(lanes: Iterable[_Lane]) -> _Lane:
    return min(lanes, key=_Lane.key)
