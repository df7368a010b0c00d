"""What must be so, worked out anew from DESIGN's words: electorates, quorums, tokens, states, and which lineage wins.

Deliberately shares no rule with `atoll.p2p.round`: a fault planted there is to be seen here. Signatures, digests and
codecs are the protocol's own; the mean and the outer step are plain NumPy. `watch` asks it about every link it sees.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from atoll.p2p.simulation.disk import Link
from atoll.protocol.certificate import FIRST_JOURNAL, Certificate, Contribution, Value
from atoll.protocol.codecs.registry import codec
from atoll.protocol.digest import ZERO_DIGEST, Digest, array_digest, content_digest, state_digest
from atoll.protocol.errors import AtollError
from atoll.protocol.fork import Fork, Rank
from atoll.protocol.identity import PeerId
from atoll.protocol.manifest import MAX_ELECTORATE, Manifest
from atoll.protocol.standing import Record, Standing

Vector = npt.NDArray[np.float32]
Entries = tuple[tuple[PeerId, bytes], ...]  # (peer, journal) by seniority


class WrongError(Exception):
    """A property that does not hold."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclass
class Made:
    """A contribution as its maker journaled it."""

    base: Digest
    contribution: Contribution
    parts: tuple[bytes, ...]  # encoded


@dataclass
class Place:
    """A link of the tree with all that follows from it."""

    id: Digest
    parent: "Place | None"
    link: Link | None  # None: genesis
    round: int
    tokens: int
    state: Digest
    electorate: Entries
    params: Vector
    momentum: Vector | None
    rank: int = 0  # of a FORK
    bound: Value | None = None
    contributors: frozenset[PeerId] = frozenset()
    voted_on: tuple[PeerId, ...] = ()  # the electorate that decided this certificate
    missed: dict[PeerId, int] = field(default_factory=dict)  # rounds in a row without vote or contribution, before this
    streaks: dict[PeerId, int] = field(default_factory=dict)  # rounds in a row with a contribution
    children: list["Place"] = field(default_factory=list)

    @property
    def is_fork(self) -> bool:
        return self.rank > 0

    @property
    def base(self) -> "Place":
        place = self
        while place.is_fork and place.parent is not None:
            place = place.parent
        return place

    def lineage(self) -> list["Place"]:
        """From genesis to here."""
        found, place = [], self
        while place is not None:
            found.append(place)
            place = place.parent  # type: ignore[assignment]  # genesis ends the loop
        return found[::-1]


def is_quorum(electorate: Entries, voters: Iterable[PeerId]) -> bool:
    """More than half, or exactly half with the most senior."""
    names = [peer for peer, _ in electorate]
    present = set(names) & set(voters)
    if len(present) * 2 == len(names):
        return names[0] in present
    return len(present) * 2 > len(names)


@functools.lru_cache(maxsize=256)
def leading_order(parent: Digest, electorate: Entries) -> tuple[PeerId, ...]:
    return tuple(sorted((peer for peer, _ in electorate), key=lambda peer: blake3(parent + peer).digest()))


class Oracle:
    def __init__(self, manifest: Manifest, genesis: Vector) -> None:
        self.manifest, self.layout = manifest, manifest.layout
        exchange = manifest.draft.exchange
        self.exchange, self.outer = exchange, manifest.draft.outer
        self.contribution, self._gather = codec(exchange.contribution_codec), codec(exchange.gather_codec)
        electorate = tuple((peer, FIRST_JOURNAL) for peer in manifest.electorate)
        momentum = None if self.outer.momentum == 0 else np.zeros_like(genesis)
        self.genesis = Place(
            manifest.run_id, None, None, 0, 0, manifest.genesis.digest, electorate, genesis.copy(), momentum)
        self.places: dict[Digest, Place] = {manifest.run_id: self.genesis}
        self.made: dict[tuple[PeerId, Digest], Made] = {}  # by peer and root

    def add(self, link: Link) -> Place:
        """Take a link into the tree; raises WrongError for the first thing about it that is not as it must be."""
        known = self.places.get(link.id)
        if known is not None:
            return known
        above = self.places.get(link.parent if isinstance(link, Fork) else link.value.parent)
        if above is None:
            raise WrongError("chain", f"a link {link.id.hex()[:8]} behind a parent that nobody ever had")
        place = self._fork(link, above) if isinstance(link, Fork) else self._certificate(link, above)
        above.children.append(place)
        self.places[place.id] = place
        return place

    # Certificates.

    def _certificate(self, certificate: Certificate, above: Place) -> Place:
        value, name = certificate.value, f"certificate {certificate.id.hex()[:8]}"
        self.check_votes(certificate, above)
        if value.round != above.round + 1:
            raise WrongError("counters", f"{name} says round {value.round} behind round {above.round}")
        self._check_contributions(value, above, name)
        tokens = above.tokens + self._tokens(value)
        if value.tokens != tokens:
            raise WrongError("tokens", f"{name} says {value.tokens} tokens, they are {tokens}")
        if above.bound is not None and _outcome(value) != _outcome(above.bound):
            raise WrongError("fork", f"{name} is not what the FORK before it is bound to")
        params, momentum, state = self._replay(value, above, name)
        if state != value.state:
            raise WrongError("state", f"{name} names a state that does not follow from what it lists")
        place = Place(
            value.id, above, certificate, value.round, tokens, state, (), params, momentum,
            contributors=frozenset(c.peer for c in value.contributions),
            voted_on=tuple(peer for peer, _ in above.electorate),
        )
        for record in value.records:
            self._check_record(record, above)
        self._succeed(place, value, above, value.records)
        named = tuple((entry.peer, entry.journal) for entry in value.electorate)
        if named != place.electorate:
            raise WrongError("electorate", f"{name} names another electorate than the rules give")
        return place

    def check_votes(self, certificate: Certificate, above: Place) -> None:
        entries, name = dict(above.electorate), f"certificate {certificate.id.hex()[:8]}"
        for vote in certificate.votes:
            if (vote.ballot, vote.certificate, vote.parent) != (certificate.ballot, certificate.id, above.id):
                raise WrongError("quorum", f"{name} holds a vote of another ballot, value or parent")
            if entries.get(vote.peer) != vote.journal:
                raise WrongError("quorum", f"{name} holds a vote of no elector, or under a journal that is not named")
            try:
                vote.check()
            except AtollError as error:
                raise WrongError("quorum", f"{name}: {error}") from error
        voters = [vote.peer for vote in certificate.votes]
        if len(set(voters)) < len(voters) or not is_quorum(above.electorate, voters):
            raise WrongError("quorum", f"{name} has {len(voters)} votes of an electorate of {len(entries)}: no quorum")

    def _check_contributions(self, value: Value, above: Place, name: str) -> None:
        for listed in value.contributions:
            made = self.made.get((listed.peer, listed.root))
            if made is None:
                raise WrongError("contributions", f"{name} lists a contribution that nobody journaled")
            if made.contribution != listed:
                raise WrongError("contributions", f"{name} lists a contribution with other tokens or another journal")
            if made.base != above.base.id:
                raise WrongError("contributions", f"{name} lists a contribution that was made under another base")
        if len(value.parts) != self.layout.parts:
            raise WrongError("parts", f"{name} has {len(value.parts)} parts")

    def weight(self, tokens: int) -> int:
        """Of a contribution of so many tokens."""
        return 1 if self.exchange.weights == "equal" else -(-tokens // self.exchange.token_unit)

    def _tokens(self, value: Value) -> int:
        numel, total = self.layout.numel, 0
        for index, listed in enumerate(value.contributions):
            elements = sum(
                self.layout.size(part) for part, entry in enumerate(value.parts)
                if entry.included[index // 8] >> index % 8 & 1
            )
            total += listed.tokens * elements // numel
        return total

    def _replay(self, value: Value, above: Place, name: str) -> tuple[Vector, Vector | None, Digest]:
        """The state after a value: the mean of what it lists, encoded once, and one outer step, part by part."""
        params = above.params.copy()
        momentum = None if above.momentum is None else above.momentum.copy()
        rate, factor = np.float32(self.outer.learning_rate), np.float32(self.outer.momentum)
        for part, entry in enumerate(value.parts):
            if entry.digest == ZERO_DIGEST and not value.contributions:
                continue
            bounds = self.layout.bounds(part)
            data = self._mean(value, part)
            if content_digest(data) != entry.digest:
                raise WrongError("exactness", f"{name}: part {part} is not the mean of what is listed for it")
            step = self._gather.decode(data, self.layout.size(part))
            if momentum is not None:
                momentum[bounds] = factor * momentum[bounds] + step
                step = factor * momentum[bounds] + step
            params[bounds] = params[bounds] - step * rate
        vectors = [params] if momentum is None else [params, momentum]
        chunks = [array_digest(vector[bounds]) for vector in vectors for bounds in self.layout]
        return params, momentum, state_digest(value.round, value.tokens, chunks)

    def _mean(self, value: Value, part: int) -> bytes:
        size = self.layout.size(part)
        total, weights = np.zeros(size, np.float32), 0
        for index, listed in enumerate(value.contributions):
            if value.parts[part].included[index // 8] >> index % 8 & 1:
                unit = self.weight(listed.tokens)
                values = self.contribution.decode(self.made[listed.peer, listed.root].parts[part], size)
                total = total + np.float32(unit) * values
                weights += unit
        return self._gather.encode(total / np.float32(weights or 1))  # nobody's part is a step of zeros

    # Who votes next (rule 2).

    def electorate(self, value: Value, above: Place, records: tuple[Record, ...]) -> Entries:
        """Who would vote behind a value if these were its records."""
        place = Place(
            value.id, above, None, value.round, 0, value.state, (), above.params, None,
            contributors=frozenset(c.peer for c in value.contributions))
        self._succeed(place, value, above, records)
        return place.electorate

    def _succeed(self, place: Place, value: Value, above: Place, records: tuple[Record, ...]) -> None:
        present = {peer for i, peer in enumerate(above.voted_on) if value.attendance[i // 8] >> i % 8 & 1}
        contributing = place.contributors
        missed = {
            peer: above.missed.get(peer, 0) + 1
            for peer, _ in above.electorate
            if peer in above.voted_on and peer not in present and peer not in above.contributors
        }
        evicted = {peer for peer, rounds in missed.items() if rounds >= 2 and peer not in contributing}
        entries = [entry for entry in above.electorate if entry[0] not in evicted] or [above.electorate[0]]
        wishes = {record.peer: record for record in records}
        entries = [
            (peer, wishes[peer].journal if peer in wishes and wishes[peer].kind is Standing.JOIN else journal)
            for peer, journal in entries
        ]
        going = {peer for peer, record in wishes.items() if record.kind in (Standing.LEAVE, Standing.CANNOT_VOTE)}
        for peer in sorted(going):
            rest = [entry for entry in entries if entry[0] != peer]
            if rest and is_quorum(tuple(rest), (present | contributing) - going):
                entries = rest
        if contributing:
            place.streaks = {peer: above.streaks.get(peer, 0) + 1 for peer in contributing}
        else:
            place.streaks = above.streaks
        for peer, record in sorted(wishes.items()):
            if record.kind is Standing.JOIN and all(peer != entry[0] for entry in entries):
                grown = (*entries, (peer, record.journal))
                earned = 0 < self.exchange.admit_after <= place.streaks.get(peer, 0)
                small = len(grown) <= MAX_ELECTORATE
                if small and (earned or self._invited(record)) and is_quorum(grown, contributing):
                    entries = list(grown)
        place.electorate = tuple(entries)
        place.missed = {peer: rounds for peer, rounds in missed.items() if any(peer == e[0] for e in entries)}

    def _check_record(self, record: Record, above: Place) -> None:
        try:
            record.check(above.base.id)
        except AtollError as error:
            raise WrongError("records", f"a record that is not signed under its base: {error}") from error

    def _invited(self, record: Record) -> bool:
        try:
            return record.has_ticket(self.manifest.run_id, self.manifest.owner)
        except AtollError:
            return False

    # FORKs (rule 6).

    def _fork(self, fork: Fork, above: Place) -> Place:
        name, said = f"FORK {fork.id.hex()[:8]}", []
        entries = dict(above.electorate)
        for promise in fork.promises:
            try:
                promise.check()
            except AtollError as error:
                raise WrongError("fork", f"{name}: {error}") from error
            if promise.accepted is not None and entries.get(promise.peer) == promise.journal:
                said.append(promise.accepted)
        allowed = self._may_sign(fork.rank, above)
        if allowed is not None and not set(fork.signers) <= allowed:
            raise WrongError("fork", f"{name} is signed by peers that may not sign one of rank {int(fork.rank)}")
        evidence = max(said, default=None, key=lambda item: item[0])
        if (None if fork.value is None else fork.value.id) != (None if evidence is None else evidence[1]):
            raise WrongError("fork", f"{name} does not carry the accepted value of the highest ballot")
        journals = {promise.peer: promise.journal for promise in fork.promises}
        order = [peer for peer, _ in above.electorate] if fork.rank is Rank.VOTERS else sorted(journals)
        electorate = tuple((peer, journals[peer]) for peer in order if peer in journals)[:MAX_ELECTORATE]
        return Place(
            fork.id, above, fork, above.round, above.tokens, above.state, electorate, above.params, above.momentum,
            rank=int(fork.rank), bound=fork.value, streaks=above.streaks,
        )

    def _may_sign(self, rank: Rank, above: Place) -> set[PeerId] | None:
        if rank is Rank.VOTERS:
            return {peer for peer, _ in above.electorate}
        if rank is Rank.CONTRIBUTORS:
            return self.recent(above)
        return None if above.round > 0 else set()

    def recent(self, place: Place) -> set[PeerId]:
        """Contributors named in the last K certificates."""
        certificates = [entry for entry in place.lineage()[1:] if not entry.is_fork]
        return {peer for entry in certificates[-self.exchange.retain_rounds :] for peer in entry.contributors}

    # Fork choice (rule 7).

    def best(self, held: set[Digest]) -> Place:
        """The certificate to follow, of those whose states are held; genesis if none is."""
        alive = {self.genesis.id}
        for name in held:
            place: Place | None = self.places[name]
            while place is not None and place.id not in alive:
                alive.add(place.id)
                place = place.parent
        return self._best(self.genesis, alive)

    def _best(self, place: Place, alive: set[Digest]) -> Place:
        path = [place]
        while True:
            children = [child for child in path[-1].children if child.id in alive]
            if len(children) != 1:
                break
            path.append(children[0])
        if not children:
            return path[-1]
        branching = path[-1]
        tips = {child.id: self._best(child, alive) for child in children}
        chosen = min(children, key=lambda child: (self._rank(branching, tips[child.id]), child.id))
        return tips[chosen.id]

    def _rank(self, branching: Place, tip: Place) -> tuple[int, int, int]:
        size, known = len(branching.electorate), {peer for peer, _ in branching.electorate}
        recent = self.recent(branching)
        credit = rank = familiar = 0
        for place in tip.lineage()[len(branching.lineage()) :]:
            if place.is_fork:
                rank = rank or place.rank
                continue
            if rank:
                credit += min(size, len(place.contributors & known))
            else:
                credit += size
                known |= {peer for peer, _ in place.electorate}
            familiar += len(place.contributors & recent)
        return -credit, rank, -familiar


def _outcome(value: Value) -> tuple[object, ...]:
    return value.contributions, value.parts, value.tokens, value.state
