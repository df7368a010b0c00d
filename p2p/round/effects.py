"""What the round asks of its driver, and nothing else: the service carries effects out for real,
a simulator in virtual time.

Effects are carried out in the order given; a `Save` is durable before anything after it begins.
"""

from dataclasses import dataclass

from atoll.p2p.round.synod import Acceptor
from atoll.protocol.certificate import Certificate
from atoll.protocol.digest import Digest
from atoll.protocol.fork import Fork
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import Blob, Message


@dataclass(frozen=True)
class Send:
    """A message to one peer; may be lost."""

    to: PeerId
    message: Message


@dataclass(frozen=True)
class SendBlob:
    """Stored bytes to one peer, behind this header; queued by reference, so that memory stays bounded."""

    to: PeerId
    blob: Blob


@dataclass(frozen=True)
class Save:
    """Make `results` (blobs) durable, then what this peer promised and accepted under `parent`."""

    parent: Digest
    acceptor: Acceptor
    results: tuple[Digest, ...] = ()


@dataclass(frozen=True)
class Freeze:
    """The round closes: get the trainer's contribution under `base` at its next step boundary."""

    base: Digest


@dataclass(frozen=True)
class Source:
    """One contribution's part, as the reducer needs it."""

    peer: PeerId
    root: Digest
    weight: int
    digest: Digest


@dataclass(frozen=True)
class Reduce:
    """Decode `sources` (ascending peer order), average, re-encode, store; answered by `Round.reduced`."""

    base: Digest
    part: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Step:
    """Compute the next state's chunks of `part` from a stored result and hash them; answered by `Round.stepped`.

    The result ZERO_DIGEST leaves the part as it is.
    """

    base: Digest
    part: int
    result: Digest


@dataclass(frozen=True)
class Commit:
    """Take the outer step for good and log the certificate behind its parent; answered by `Round.committed`.

    `dropped` tells who fell out of the round, and in which of its phases.
    """

    certificate: Certificate
    dropped: tuple[tuple[PeerId, str], ...] = ()


@dataclass(frozen=True)
class Enter:
    """Log a FORK behind its parent, in place of whatever followed it: the state stays, the next decree is its own."""

    fork: Fork


@dataclass(frozen=True)
class Adopt:
    """Leave this lineage: rebuild the outer state at `target`, log the path to it; answered by `Round.adopted`,
    or by `Round.unreachable` if bytes are gone.
    """

    target: Digest


@dataclass(frozen=True)
class Note:
    """Something that people and logs should know; `code` is its stable name."""

    code: str
    message: str
    peer: PeerId | None = None


@dataclass(frozen=True)
class Discard:
    """The results of the round behind `parent` are no longer needed."""

    parent: Digest


@dataclass(frozen=True)
class KeepParts:
    """Contributions under these parents are still of use, all others are not."""

    parents: frozenset[Digest]


@dataclass(frozen=True)
class Prune:
    """The journal may forget promises under all parents but these, and contributions under all bases but those."""

    parents: frozenset[Digest]
    bases: frozenset[Digest]
    tip: Digest  # a chain that does not have it, after a loss, is behind the journal


Effect = Send | SendBlob | Save | Freeze | Reduce | Step | Commit | Enter | Adopt | Note | Discard | KeepParts | Prune
