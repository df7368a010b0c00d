"""Content that a newcomer needs before it can take part: manifest, tokenizer, genesis.

Each item is asked of one peer after another until one delivers bytes under the right digest. Chunks of genesis are kept
as blobs as they arrive, so an interrupted fetch goes on where it stopped.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from atoll.p2p.blobs import BlobStore
from atoll.protocol import canonical
from atoll.protocol.digest import Digest, state_digest
from atoll.protocol.errors import AtollError, MalformedError, MismatchError
from atoll.protocol.identity import PeerId
from atoll.protocol.manifest import MANIFEST_LIMIT, Manifest
from atoll.protocol.messages import Blob, BlobKind
from atoll.protocol.read import digest as check_digest

ANSWER_S = 5.0
ROUND_PAUSE_S = 1.0
AT_ONCE = 8
LIMITS = {
    BlobKind.MANIFEST: MANIFEST_LIMIT,
    BlobKind.TOKENIZER: 64 << 20,
    BlobKind.CHUNKS: 64 << 20,
    BlobKind.CHUNK: 16 << 20,
}


class Fetcher:
    """Asks for blobs outside any round. The service feeds it what arrives."""

    def __init__(
        self, ask: Callable[[PeerId, BlobKind, Digest], None], peers: Callable[[], Awaitable[Sequence[PeerId]]]
    ) -> None:
        self._ask, self._peers = ask, peers
        self._open: dict[Digest, tuple[BlobKind, asyncio.Queue[bytes | None]]] = {}

    def accepts(self, blob: Blob) -> bool:
        entry = self._open.get(blob.digest)
        return (
            entry is not None and blob.content is entry[0] and blob.size is not None and blob.size <= LIMITS[entry[0]]
        )

    def arrived(self, digest: Digest, payload: bytes | None) -> bool:
        """Bytes for an open request, or None for «do not have it»; False if nobody waits for them."""
        entry = self._open.get(digest)
        if entry is None:
            return False
        entry[1].put_nowait(payload)
        return True

    async def fetch(self, kind: BlobKind, digest: Digest, check: Callable[[bytes], object] | None = None) -> bytes:
        """The bytes under `digest`; tries peers until one has them and `check` raises nothing. Ends only by
        cancellation.
        """
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._open[digest] = kind, queue
        try:
            while True:
                for peer in await self._peers():
                    self._ask(peer, kind, digest)
                    try:
                        async with asyncio.timeout(ANSWER_S):
                            payload = await queue.get()
                        if payload is not None:
                            if check is not None:
                                check(payload)
                            return payload
                    except (TimeoutError, AtollError):
                        continue  # the next peer may do better
                await asyncio.sleep(ROUND_PAUSE_S)
        finally:
            del self._open[digest]

    async def manifest(self, run_id: Digest) -> Manifest:
        def check(data: bytes) -> None:
            if Manifest.parse(data).run_id != run_id:
                raise MismatchError("a manifest of another run")

        return Manifest.parse(await self.fetch(BlobKind.MANIFEST, run_id, check))

    async def genesis(self, manifest: Manifest, blobs: BlobStore, target: Path) -> None:
        """Fetch the genesis parameters chunk by chunk and assemble them, verified, at `target`."""
        run_id, layout = manifest.run_id, manifest.layout
        listing = await self.fetch(BlobKind.CHUNKS, manifest.genesis.digest, lambda data: read_chunks(data, manifest))
        chunks = read_chunks(listing, manifest)[: layout.parts]
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(chunk: Digest) -> None:
            async with slots:
                if blobs.size(chunk) is None:
                    payload = await self.fetch(BlobKind.CHUNK, chunk)
                    await asyncio.to_thread(blobs.put, BlobKind.CHUNK, run_id, chunk, payload)

        async with asyncio.TaskGroup() as tasks:
            for chunk in dict.fromkeys(chunks):
                tasks.create_task(one(chunk))
        partial = target.with_suffix(".partial")
        with partial.open("wb") as file:
            for chunk in chunks:
                file.write(blobs.read(chunk))
        partial.rename(target)


def read_chunks(data: bytes, manifest: Manifest) -> tuple[Digest, ...]:
    """The chunk digests of genesis. Raises MalformedError or MismatchError."""
    tree = canonical.decode(data, limit=LIMITS[BlobKind.CHUNKS])
    if not isinstance(tree, tuple):
        raise MalformedError("not a list of chunks")
    chunks = tuple(check_digest(item) for item in tree)
    if state_digest(0, 0, chunks) != manifest.genesis.digest:
        raise MismatchError("a list of chunks that is not the one of this run's genesis")
    return chunks
