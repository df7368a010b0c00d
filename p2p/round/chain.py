"""Which certificates exist, where this peer stands among them, and whether a new one belongs there.

The links, certificates and FORKs, form a tree from genesis. Whatever is added has been checked for all that needs no
bytes: parent, counters, electorate, votes of one ballot and of a quorum, last promises. Which of the lineages whose
states are held wins stands in `lineage`. No IO; `run_store` keeps the path to the tip.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.electorate import Electorate, Policy, Standings
from atoll.p2p.round.lineage import Lineages, Node
from atoll.p2p.round.synod import evidence
from atoll.protocol.certificate import FIRST_JOURNAL, Certificate, Value, bitmap_bytes, round_tokens
from atoll.protocol.digest import ZERO_DIGEST, Digest
from atoll.protocol.errors import MalformedError, SignatureError
from atoll.protocol.fork import Fork, Rank
from atoll.protocol.identity import PeerId
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import ExchangeSettings

Link = Certificate | Fork


@dataclass(frozen=True)
class Tip:
    """A place in the tree: what the next value's parent is, and all that the next value is checked against."""

    id: Digest
    base: Digest  # the nearest certificate: contributions belong to it, never to a FORK
    round: int
    tokens: int
    state: Digest
    standings: Standings
    bound: Value | None = None  # what the first certificate behind a FORK must repeat
    forks: int = 0  # FORKs on the path to here

    @property
    def electorate(self) -> Electorate:
        return self.standings.electorate

    @functools.cached_property
    def voters(self) -> tuple[PeerId, ...]:
        return electorates.peers(self.electorate)

    @functools.cached_property
    def countable(self) -> Electorate:
        """Entries whose votes count: a journal that nobody has named yet is good for the first certificate only."""
        return tuple(entry for entry in self.electorate if entry.journal != FIRST_JOURNAL or self.round == 0)

    @property
    def is_fork(self) -> bool:
        return self.id != self.base

    @functools.cached_property
    def _journals(self) -> dict[PeerId, bytes]:
        return {entry.peer: entry.journal for entry in self.electorate}

    @functools.cached_property
    def _leaders(self) -> tuple[PeerId, ...]:
        return electorates.leaders(self.id, self.electorate)

    def journal_of(self, peer: PeerId) -> bytes | None:
        """The journal under which `peer` votes here; None if it does not."""
        return self._journals.get(peer)

    def leader(self, ballot: int) -> PeerId:
        return electorates.leads(self._leaders, ballot)

    def leaders_between(self, first: int, end: int) -> tuple[PeerId, ...]:
        """Who leads the ballots from `first` to before `end`, each once."""
        size = len(self._leaders)
        if end - first >= size:
            return self._leaders
        first, end = first % size, end % size
        return self._leaders[first:end] if first <= end else self._leaders[first:] + self._leaders[:end]

    def next_turn(self, peer: PeerId, at_least: int) -> int | None:
        """The first ballot from `at_least` on that `peer` leads; None if it does not vote."""
        return electorates.turn(self._leaders, peer, at_least)


def parent_of(link: Link) -> Digest:
    return link.parent if isinstance(link, Fork) else link.value.parent


class Chain:
    """The tree of links, the tip where this peer stands, and the path that leads there."""

    def __init__(
        self, run_id: Digest, electorate: Electorate, genesis_state: Digest, layout: Layout, *,
        owner: PeerId, settings: ExchangeSettings,
    ) -> None:
        self.layout = layout
        self.sizes = tuple(layout.size(part) for part in range(layout.parts))
        self.policy = Policy(run_id, owner, settings.admit_after)
        self.horizon = settings.retain_rounds
        self.genesis = Tip(run_id, run_id, 0, 0, genesis_state, Standings(electorate))
        self.tip = self.genesis
        self._tips = {run_id: self.genesis}
        self._links: dict[Digest, Link] = {}
        self._next: dict[Digest, Digest] = {}  # on the path to the tip: parent -> child
        self.lineages = Lineages(
            Node(run_id, None, is_fork=False, rank=0, electorate=self.genesis.voters, contributors=frozenset()),
            self.horizon,
        )

    # What is known.

    def __contains__(self, link: Digest) -> bool:
        return link in self._tips

    def tip_of(self, link: Digest) -> Tip:
        return self._tips[link]

    def link(self, name: Digest) -> Link | None:
        return self._links.get(name)

    def parent(self, name: Digest) -> Digest | None:
        """The parent of a known link; None for genesis."""
        link = self._links.get(name)
        return None if link is None else parent_of(link)

    def child(self, parent: Digest) -> Link | None:
        """The link that follows `parent` on the path to the tip."""
        name = self._next.get(parent)
        return None if name is None else self._links[name]

    def lineage(self, name: Digest) -> list[Link]:
        """Links from genesis to `name`, oldest first."""
        return list(self._upwards(name))[::-1]

    def recent_links(self, name: Digest, most: int) -> list[Link]:
        """The last links up to `name`, newest first."""
        return list(itertools.islice(self._upwards(name), most))

    def _upwards(self, name: Digest) -> Iterator[Link]:
        """Links from `name` up to genesis, newest first."""
        link = self._links.get(name)
        while link is not None:
            yield link
            link = self._links.get(parent_of(link))

    def on_path(self, name: Digest) -> bool:
        """Whether `name` is the tip or one of its ancestors."""
        return name == self.tip.id or name in self._next

    def buried(self, parent: Digest) -> bool:
        """Whether `parent` can never be the tip again: it is on the path, and a certificate behind it is held."""
        return self.on_path(parent) and self._tips[parent].base != self.tip.base

    def recent(self, name: Digest) -> frozenset[PeerId]:
        """Contributors named in the last K certificates up to `name`."""
        certificates = (link for link in self._upwards(name) if isinstance(link, Certificate))
        last = itertools.islice(certificates, self.horizon)
        return frozenset(c.peer for certificate in last for c in certificate.value.contributions)

    # What is added.

    def add(self, link: Link) -> Tip:
        """Check a link and take it into the tree. Raises MalformedError, SignatureError, KeyError (parent unknown)."""
        known = self._tips.get(link.id)
        if known is not None:
            return known
        parent = self._tips[parent_of(link)]
        if isinstance(link, Fork):
            tip = self._behind_fork(link, parent)
        else:
            check_value(link.value, parent, self.sizes, self.policy)
            check_votes(link, parent)
            tip = self._behind_certificate(link, parent)
        self._tips[tip.id], self._links[tip.id] = tip, link
        rank = int(link.rank) if isinstance(link, Fork) else 0
        self.lineages.add(Node(
            tip.id, parent.id, is_fork=tip.is_fork, rank=rank, electorate=tip.voters,
            contributors=tip.standings.contributors,
        ))
        return tip

    def move(self, name: Digest) -> None:
        """Make a known link the tip."""
        if self.parent(name) == self.tip.id:
            self._next[self.tip.id] = name
        else:
            self._next = {parent_of(link): link.id for link in self.lineage(name)}
        self.tip = self._tips[name]

    def append(self, link: Link) -> None:
        """Add a child of the tip whose state is held, and move there."""
        if self.add(link).id != link.id or parent_of(link) != self.tip.id:
            raise ValueError("only a child of the tip can be appended")
        if isinstance(link, Certificate):
            self.lineages.hold(link.id)
        self.move(link.id)

    def _behind_certificate(self, certificate: Certificate, parent: Tip) -> Tip:
        value = certificate.value
        after = electorates.successor(
            parent.standings, self.policy, value.contributions, value.attendance, value.records)
        return Tip(value.id, value.id, value.round, value.tokens, value.state, after, None, parent.forks)

    def _behind_fork(self, fork: Fork, parent: Tip) -> Tip:
        self.check_fork(fork, parent)
        after = electorates.survivors(parent.standings, fork.promises, fork.rank)
        return Tip(fork.id, parent.base, parent.round, parent.tokens, parent.state, after, fork.value, parent.forks + 1)

    def check_fork(self, fork: Fork, parent: Tip) -> None:
        """Raise MalformedError or SignatureError unless this FORK follows from its parent."""
        allowed = self.may_sign(parent, fork.rank)
        for promise in fork.promises:
            promise.check()
            if allowed is not None and promise.peer not in allowed:
                raise MalformedError(f"a FORK of rank {fork.rank} is signed by a peer that may not")
        bound = evidence(fork.promises, parent.countable)
        if (None if bound is None else bound[1]) != (None if fork.value is None else fork.value.id):
            raise MalformedError("a FORK does not carry the value that its promises are evidence of")
        if fork.value is not None:
            check_value(fork.value, parent, self.sizes, self.policy)

    def may_sign(self, parent: Tip, rank: Rank) -> frozenset[PeerId] | None:
        """Who may sign a FORK of this rank under `parent`; None: anybody."""
        if rank is Rank.VOTERS:
            return frozenset(parent.voters)
        if rank is Rank.CONTRIBUTORS:
            return self.recent(parent.base)
        return None if parent.round > 0 else frozenset()


def check_value(value: Value, parent: Tip, sizes: tuple[int, ...], policy: Policy) -> None:
    """Raise unless `value` follows from its parent in all that can be recomputed without its bytes."""
    if value.parent != parent.id:
        raise MalformedError("the value belongs to another parent")
    if value.round != parent.round + 1:
        raise MalformedError(f"the value says round {value.round}, its parent is of round {parent.round}")
    if len(value.parts) != len(sizes):
        raise MalformedError(f"the value has {len(value.parts)} parts, the run has {len(sizes)}")
    if any((part.digest == ZERO_DIGEST) != (not value.contributions) for part in value.parts):
        raise MalformedError("the value leaves parts as they are, and yet lists contributions")
    if value.tokens != parent.tokens + round_tokens(value.contributions, value.parts, sizes):
        raise MalformedError("the value's tokens are not its parent's and its contributions' together")
    if parent.bound is not None and outcome(value) != outcome(parent.bound):
        raise MalformedError("the value is not the one that the FORK before it is bound to")
    check_electorate(value, parent, policy)


def check_electorate(value: Value, parent: Tip, policy: Policy) -> None:
    """Raise unless the value's records are signed under this base and give the electorate that it names."""
    voted = len(parent.standings.decided_by)
    if len(value.attendance) != bitmap_bytes(voted) or int.from_bytes(value.attendance, "little") >> voted:
        raise MalformedError("the value's attendance does not fit those who voted on its parent")
    for record in value.records:
        record.check(parent.base)
    after = electorates.successor(
        parent.standings, policy, value.contributions, value.attendance, value.records)
    if value.electorate != after.electorate:
        raise MalformedError("the value names another electorate than the rules give")


def outcome(value: Value) -> tuple[object, ...]:
    """What a FORK's survivors inherit of a value: contributions, results and the state they lead to."""
    return value.contributions, value.parts, value.tokens, value.state


def check_votes(certificate: Certificate, parent: Tip) -> None:
    """Raise unless the votes are valid, of electors under their journals, and a quorum of the parent's electorate."""
    entries = {entry.peer: entry.journal for entry in parent.countable}
    seen = set()
    for vote in certificate.votes:
        if entries.get(vote.peer) != vote.journal or vote.peer in seen:
            raise SignatureError("a certificate carries a vote of somebody outside the electorate, or one twice")
        vote.check()
        seen.add(vote.peer)
    if not electorates.is_quorum(parent.electorate, seen):
        raise SignatureError(f"a certificate carries {len(seen)} votes, which is no quorum of {len(parent.electorate)}")
