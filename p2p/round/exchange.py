"""From contributions to results, under one certificate: the butterfly form of DESIGN's exchange, without IO.

Every member sends each part of its encoded pseudo-gradient to the part's owner; the owner averages what it has and
sends the bytes to everybody. Nobody needs to agree on owners: the certified value picks one result per part. Holds
digests and bookkeeping only; the bytes are blobs that the driver stores, reduces and sends.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from blake3 import blake3

from atoll.p2p.round.effects import Reduce, SendBlob, Source
from atoll.protocol.certificate import Contribution, PartResult, bitmap
from atoll.protocol.codecs.registry import codec
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import PeerId
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import WEIGHT_LIMIT, ExchangeSettings
from atoll.protocol.messages import Blob, BlobKind, Start

LEAF_BYTES = 34
"""A digest in canonical msgpack: two bytes of header, 32 of content."""


class Shape:
    """Exact sizes of everything that is exchanged, from the manifest; what a stranger sends is held against them."""

    def __init__(self, layout: Layout, settings: ExchangeSettings) -> None:
        contribution, gather = codec(settings.contribution_codec), codec(settings.gather_codec)
        self.sizes = tuple(layout.size(part) for part in range(layout.parts))
        self.part_bytes = tuple(contribution.encoded_size(size) for size in self.sizes)
        self.result_bytes = tuple(gather.encoded_size(size) for size in self.sizes)
        count = len(self.sizes)
        self.leaves_bytes = LEAF_BYTES * count + (1 if count < 16 else 3 if count < 1 << 16 else 5)
        self.settings = settings

    @property
    def parts(self) -> int:
        return len(self.sizes)

    def weight(self, tokens: int) -> int:
        """Integer weight of a contribution; sums of weights are exact in float32."""
        return 1 if self.settings.weights == "equal" else -(-tokens // self.settings.token_unit)

    def fits(self, blob: Blob) -> bool:
        """Whether the header's part and size are those of this run."""
        if blob.content is BlobKind.LEAVES:
            return blob.size == self.leaves_bytes
        if blob.content not in (BlobKind.PART, BlobKind.RESULT) or blob.part >= self.parts:
            return False
        return blob.size == (self.part_bytes if blob.content is BlobKind.PART else self.result_bytes)[blob.part]


@dataclass(frozen=True)
class Head:
    """A peer's contribution, as it announced it: the first root counts, for good."""

    root: Digest
    tokens: int
    journal: bytes


@dataclass(frozen=True)
class Result:
    digest: Digest
    roots: tuple[Digest, ...]


def assign(parts: int, rates: Mapping[PeerId, int]) -> tuple[PeerId, ...]:
    """Owners of the parts, in shares proportional to the peers' upload rates (largest remainder, ties to the lower id).

    A rate of zero means unknown and counts as the mean of the known ones.
    """
    known = [rate for rate in rates.values() if rate > 0]
    usual = max(1, sum(known) // len(known)) if known else 1
    shares = {peer: rate if rate > 0 else usual for peer, rate in rates.items()}
    total = sum(shares.values())
    counts = {peer: parts * share // total for peer, share in shares.items()}
    by_remainder = sorted(shares, key=lambda peer: (-(parts * shares[peer] % total), peer))
    for peer in by_remainder[: parts - sum(counts.values())]:
        counts[peer] += 1
    return tuple(peer for peer in sorted(counts) for _ in range(counts[peer]))


def run_lengths(owners: Iterable[PeerId], members: tuple[PeerId, ...]) -> tuple[tuple[int, int], ...]:
    """START's coding of the owners, `Start.owner_of`'s inverse."""
    runs: list[tuple[int, int]] = []
    for index in map(members.index, owners):
        if runs and runs[-1][0] == index:
            runs[-1] = index, runs[-1][1] + 1
        else:
            runs.append((index, 1))
    return tuple(runs)


def sending_order(parent: Digest, peer: PeerId, parts: int) -> list[int]:
    """The order in which `peer` sends its parts, seeded so that a slow link does not always miss the same ones."""
    return sorted(range(parts), key=lambda part: blake3(parent + peer + part.to_bytes(4, "little")).digest())


class Exchange:
    def __init__(self, base: Digest, me: PeerId, shape: Shape) -> None:
        self.base, self.me, self.shape = base, me, shape
        self.start: Start | None = None
        self.started_at = 0.0
        self.owners: tuple[PeerId, ...] = ()
        self.heads: dict[PeerId, Head] = {}
        self.leaves: dict[Digest, tuple[Digest, ...]] = {}
        self.held: dict[tuple[PeerId, int], Blob] = {}
        self.excluded: set[tuple[PeerId, int]] = set()
        self.results: dict[tuple[int, PeerId], Result] = {}
        self._sent: set[tuple[PeerId, int, Digest]] = set()
        self._to_send: list[int] = []  # own parts that may not have gone to their owners yet
        self._order = sending_order(base, me, shape.parts)
        self._reducing: set[int] = set()
        self._received_bytes: dict[PeerId, int] = {}

    # What comes in.

    def announce(self, peer: PeerId, head: Head) -> bool:
        """Note a peer's contribution; False if it contradicts an earlier announcement under the same journal.

        The first one stays either way.
        """
        first = self.heads.setdefault(peer, head)
        return first == head or first.journal != head.journal

    def fix(self, head: Head, leaves: tuple[Digest, ...]) -> None:
        """Take this peer's own contribution: immutable from here on."""
        self.announce(self.me, head)
        root = head.root
        self.leaves[root] = leaves
        for part, digest in enumerate(leaves):
            self.held[self.me, part] = Blob(
                BlobKind.PART, digest, self.shape.part_bytes[part], self.base, self.me, root, part
            )
        self._to_send = list(self._order)

    def begin(self, start: Start, now: float) -> None:
        """Follow a START. Raises MalformedError if it does not cover the parts."""
        self.owners = start.owner_of(self.shape.parts)
        self.start, self.started_at = start, now
        self._reducing.clear()
        self._to_send = list(self._order)

    def reopen(self) -> None:
        """Another decree begins over the same contributions, behind a FORK: contributions and results are inherited."""
        self.start, self.owners = None, ()
        self._reducing.clear()
        self._sent = {item for item in self._sent if item[1] == -1 or item[2] not in self._own_results()}

    def _own_results(self) -> set[Digest]:
        return {result.digest for (_, peer), result in self.results.items() if peer == self.me}

    def accepts(self, sender: PeerId, blob: Blob) -> bool:
        """Whether these bytes may be received at all: of this run's sizes, and not more than one vector each way."""
        if (
            blob.size is None
            or not self.shape.fits(blob)
            or (blob.content is not BlobKind.RESULT and blob.peer is None)
        ):
            return False
        quota = 2 * (sum(self.shape.part_bytes) + sum(self.shape.result_bytes) + 2 * self.shape.leaves_bytes)
        spent = self._received_bytes.get(sender, 0) + blob.size
        if spent > quota:
            return False
        self._received_bytes[sender] = spent
        return True

    def hold(self, sender: PeerId, blob: Blob, leaves: tuple[Digest, ...] | None) -> None:
        """Take note of stored, verified bytes. Raises MalformedError for a list of leaves of the wrong length."""
        if blob.content is BlobKind.LEAVES:
            if leaves is None or len(leaves) != self.shape.parts:
                raise MalformedError("a contribution's list of digests does not have one for each part")
            self.leaves[blob.digest] = leaves
        elif blob.content is BlobKind.PART and blob.peer == sender:
            self.held.setdefault((blob.peer, blob.part), blob)
        elif blob.content is BlobKind.RESULT and blob.roots == tuple(dict.fromkeys(blob.roots)):
            self.results[blob.part, sender] = Result(blob.digest, blob.roots)

    def exclude(self, peer: PeerId, part: int) -> None:
        """Leave a part out whose bytes turned out unusable."""
        self.excluded.add((peer, part))
        self._reducing.discard(part)

    def forget_sent(self, peer: PeerId) -> None:
        """The link to `peer` broke: what was under way to it has to be sent again."""
        self._sent = {item for item in self._sent if item[0] != peer}
        self._to_send = list(self._order)

    # What goes out.

    def sends(self, reachable: Callable[[PeerId], bool]) -> list[SendBlob]:
        """Own parts to their owners, each once per link."""
        out: list[SendBlob] = []
        head = self.heads.get(self.me)
        if self.start is None or not self._to_send or head is None or head.root not in self.leaves:
            return out
        leaves = Blob(BlobKind.LEAVES, head.root, self.shape.leaves_bytes, self.base, self.me)
        later = []
        for part in self._to_send:
            owner = self.owners[part]
            if owner == self.me:
                continue
            if reachable(owner):
                self._once(out, owner, leaves)
                self._once(out, owner, self.held[self.me, part])
            else:
                later.append(part)
        self._to_send = later
        return out

    def own_results(self) -> list[int]:
        """Parts that this peer owns and has the result of."""
        return [part for part, owner in enumerate(self.owners) if owner == self.me and (part, owner) in self.results]

    def spread(self, part: int, everybody: Iterable[PeerId]) -> list[SendBlob]:
        """Send this peer's own result of a part, to those who do not have it yet."""
        out: list[SendBlob] = []
        result = self.results[part, self.me]
        lacking = [p for p in everybody if p != self.me and (p, part, result.digest) not in self._sent]
        if lacking:
            size = self.shape.result_bytes[part]
            blob = Blob(BlobKind.RESULT, result.digest, size, self.base, part=part, roots=result.roots)
            for peer in lacking:
                self._once(out, peer, blob)
        return out

    def _once(self, out: list[SendBlob], to: PeerId, blob: Blob) -> None:
        key = to, -1 if blob.content is BlobKind.LEAVES else blob.part, blob.digest
        if key not in self._sent:
            self._sent.add(key)
            out.append(SendBlob(to, blob))

    # The owner's part.

    def reductions(self, now: float, awaited: Callable[[PeerId], bool]) -> list[Reduce]:
        """Parts that this peer owns and can reduce now: all there, or nobody left who is worth waiting for."""
        if self.start is None:
            return []
        over = now >= self.grace_ends
        out = []
        for part, owner in enumerate(self.owners):
            done = self.results.get((part, self.me))  # one with nobody in it is done anew, once there is somebody
            if owner != self.me or part in self._reducing or (done and (done.roots or not self._sources(part))):
                continue
            missing = [m for m in self.start.members if not self._usable(m, part) and (m, part) not in self.excluded]
            if over or not any(awaited(member) for member in missing):
                self._reducing.add(part)
                out.append(Reduce(self.base, part, self._sources(part)))
        return out

    @property
    def grace_ends(self) -> float:
        """A leader may shorten the manifest's grace, not stretch it."""
        return self.started_at + (min(self.start.grace_ms / 1000, self.shape.settings.grace_s) if self.start else 0.0)

    @property
    def anything_held(self) -> bool:
        """Whether there is a usable part of any contribution, or a result with somebody in it."""
        return any(self._usable(peer, part) for peer, part in self.held) or any(
            result.roots for result in self.results.values())

    def _usable(self, peer: PeerId, part: int) -> bool:
        """Held, of the announced root, and really a leaf of it."""
        blob, head = self.held.get((peer, part)), self.heads.get(peer)
        if blob is None or head is None or blob.root != head.root or (peer, part) in self.excluded:
            return False
        leaves = self.leaves.get(head.root)
        return leaves is not None and leaves[part] == blob.digest

    def _sources(self, part: int) -> tuple[Source, ...]:
        members = self.start.members if self.start else ()
        sources, total = [], 0
        for peer in members:
            if self._usable(peer, part):
                head = self.heads[peer]
                weight = self.shape.weight(head.tokens)
                if total + weight < WEIGHT_LIMIT:  # beyond it sums are no longer exact: the rest misses this round
                    total += weight
                    sources.append(Source(peer, head.root, weight, self.held[peer, part].digest))
        return tuple(sources)

    # The leader's part.

    def late_owners(self, usable: Callable[[int, Digest], bool]) -> set[PeerId]:
        """Owners that still owe a result."""
        return {owner for part, owner in enumerate(self.owners) if self.announced(part, usable) is None}

    def announced(self, part: int, usable: Callable[[int, Digest], bool]) -> Result | None:
        """The result that the part's owner announced, once it has been stepped and all its roots are known."""
        result = self.results.get((part, self.owners[part])) if self.owners else None
        roots = {head.root for head in self.heads.values()}
        return result if result and usable(part, result.digest) and roots.issuperset(result.roots) else None

    def outcome(
        self, usable: Callable[[int, Digest], bool]
    ) -> tuple[tuple[Contribution, ...], tuple[PartResult, ...]] | None:
        """Contributions and results for a value, once every part has a result, with somebody in one of them."""
        found = [self.announced(part, usable) for part in range(self.shape.parts)]
        results = [result for result in found if result is not None]
        if len(results) < len(found):
            return None
        listed = {root for result in results for root in result.roots}
        if not listed:
            return None
        contributions = tuple(
            Contribution(peer, head.root, head.tokens, head.journal)
            for peer, head in sorted(self.heads.items())
            if head.root in listed
        )
        index = {c.root: i for i, c in enumerate(contributions)}
        parts = tuple(
            PartResult(bitmap({index[r] for r in result.roots}, len(contributions)), result.digest)
            for result in results
        )
        return contributions, parts
