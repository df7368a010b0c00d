"""Certificates and FORKs whose parent is not known yet."""

from atoll.p2p.round.chain import Link, parent_of
from atoll.protocol.digest import Digest
from atoll.protocol.fork import Fork
from atoll.protocol.identity import PeerId

MAX_ORPHANS = 256
MAX_BYTES = 64 << 20  # of them all, as they would travel, roughly


class Orphans:
    """Links whose parent is not known yet; bounded, the oldest go first."""

    def __init__(self) -> None:
        self._links: dict[Digest, tuple[Link, PeerId]] = {}

    def __contains__(self, name: Digest) -> bool:
        return name in self._links

    def missing(self, name: Digest) -> Digest:
        """The nearest ancestor of a link that is not here."""
        while name in self._links:
            name = parent_of(self._links[name][0])
        return name

    def keep(self, link: Link, peer: PeerId) -> None:
        self._links[link.id] = link, peer
        while len(self._links) > 1 and (len(self._links) > MAX_ORPHANS or self._bytes() > MAX_BYTES):
            self._links.pop(next(iter(self._links)))

    def _bytes(self) -> int:
        return sum(_size(link) for link, _ in self._links.values())

    def children(self, parent: Digest) -> list[tuple[Link, PeerId]]:
        """Remove and return the links behind `parent`."""
        found = [name for name, (link, _) in self._links.items() if parent_of(link) == parent]
        return [self._links.pop(name) for name in found]


def _size(link: Link) -> int:
    value = link.value
    signed = len(link.promises) if isinstance(link, Fork) else len(link.votes)
    named = 0 if value is None else len(value.contributions) + len(value.records)
    return 256 * (signed + named) + (0 if value is None else 160 * len(value.parts))
