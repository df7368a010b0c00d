"""Messages and blobs to and from every peer, over one transport: a control and a bulk stream per direction and peer.

Frames are length-prefixed. Messages on a control stream never wait behind bytes on a bulk stream. A blob is named when
it is queued and read from disk when its turn comes, so memory stays bounded; each is acknowledged, which paces the
sender and measures the link. When a stream breaks, what was under way is forgotten and the observer told: the round
sends again what still matters. Knows no rounds; the service calls it.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, Self

from atoll.p2p.transport.port import Stream, Transport, TransportError
from atoll.protocol import canonical
from atoll.protocol.digest import Digest, content_digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import MESSAGE_LIMIT, Blob, BlobKind

CONTROL, BULK = "/atoll/1/control", "/atoll/1/bulk"
PIECE = 1 << 16
STALL_S = 15.0
OPEN_S = 6.0
IDLE_S = 7 * 86_400.0
HEADER_LIMIT = 1 << 18
BLOB_LIMIT = 64 << 20
IN_MEMORY_LIMIT = 96 << 20
UNACKNOWLEDGED = 8
QUEUE_LIMIT = 1 << 16
BACKOFF_S = (0.2, 3.0)


class LinkObserver(Protocol):
    """What the service does with what arrives; called in the event loop, must not block."""

    def on_message(self, peer: PeerId, data: bytes) -> None: ...
    def accepts(self, peer: PeerId, blob: Blob) -> bool: ...
    def on_bytes(self, peer: PeerId, blob: Blob) -> None: ...
    async def on_blob(self, peer: PeerId, blob: Blob, payload: bytes) -> None: ...
    def on_broken(self, peer: PeerId) -> None: ...
    def read_blob(self, digest: Digest) -> bytes: ...


class Links:
    def __init__(self, transport: Transport, observer: LinkObserver) -> None:
        self.transport, self.observer = transport, observer
        self.up_bytes = self.down_bytes = 0
        self._outbound: dict[tuple[PeerId, str], _Outbound] = {}
        self._memory = _Budget(IN_MEMORY_LIMIT)
        self._tasks = asyncio.TaskGroup()
        self.rate_bps = 0.0

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self.transport.serve(CONTROL, self._read_control)
        self.transport.serve(BULK, self._read_bulk)
        return self

    async def __aexit__(self, *_: object) -> None:
        for outbound in self._outbound.values():
            outbound.task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def send(self, peer: PeerId, data: bytes) -> None:
        """Queue a message. It may be lost; the round says again what matters."""
        self._channel(peer, CONTROL).push(data)

    def send_blob(self, peer: PeerId, blob: Blob) -> None:
        """Queue a stored blob behind its header."""
        self._channel(peer, BULK).push(blob)

    async def flush(self) -> None:
        """Wait until every queue is empty."""
        await asyncio.gather(*(outbound.emptied.wait() for outbound in self._outbound.values()))

    def _channel(self, peer: PeerId, protocol: str) -> "_Outbound":
        outbound = self._outbound.get((peer, protocol))
        if outbound is None:
            run = self._write_control if protocol == CONTROL else self._write_bulk
            outbound = self._outbound[peer, protocol] = _Outbound()
            outbound.task = self._tasks.create_task(self._keep(peer, protocol, outbound, run))
        return outbound

    # Sending.

    async def _keep(
        self,
        peer: PeerId,
        protocol: str,
        outbound: "_Outbound",
        run: "Callable[[Stream, _Outbound], Awaitable[None]]",
    ) -> None:
        """Open the stream when there is something to send, and again after it broke."""
        pause = BACKOFF_S[0]
        while True:
            await outbound.filled.wait()
            opened = time.monotonic()
            try:
                stream = await self.transport.open(peer, protocol, timeout_s=OPEN_S)
                try:
                    await run(stream, outbound)
                finally:
                    await stream.close()
            except TransportError:
                pass  # told to the observer below, like an end of the stream
            except (KeyError, OSError) as error:
                raise RuntimeError("a queued blob is no longer on disk") from error
            outbound.clear()
            self.observer.on_broken(peer)
            pause = BACKOFF_S[0] if time.monotonic() - opened > BACKOFF_S[1] else min(2 * pause, BACKOFF_S[1])
            await asyncio.sleep(pause)

    async def _write_control(self, stream: Stream, outbound: "_Outbound") -> None:
        async def write() -> None:
            while True:
                data = await outbound.pop()
                if isinstance(data, bytes):
                    await self._write_frame(stream, data)

        await _until_first(write(), _end_of(stream))

    async def _write_bulk(self, stream: Stream, outbound: "_Outbound") -> None:
        window = asyncio.Semaphore(UNACKNOWLEDGED)
        sent: deque[tuple[float, int]] = deque()

        async def write() -> None:
            while True:
                blob = await outbound.pop()
                if not isinstance(blob, Blob):
                    continue
                try:
                    payload = await asyncio.to_thread(self.observer.read_blob, blob.digest)
                except KeyError:
                    continue  # its round is over and its bytes are gone; nobody waits for them
                try:
                    async with asyncio.timeout(STALL_S):
                        await window.acquire()
                except TimeoutError:
                    raise TransportError("a peer acknowledges nothing", "stalled") from None
                started = time.monotonic()
                await self._write_frame(stream, canonical.encode(blob.tree()))
                for at in range(0, len(payload), PIECE):
                    await stream.write(memoryview(payload)[at : at + PIECE], timeout_s=STALL_S)
                    self.up_bytes += min(PIECE, len(payload) - at)
                sent.append((started, len(payload)))

        async def acknowledge() -> None:
            while True:
                await stream.read_exactly(1, timeout_s=IDLE_S)
                started, size = sent.popleft() if sent else (0.0, 0)
                if size >= PIECE:
                    rate = size / max(time.monotonic() - started, 1e-6)
                    self.rate_bps = rate if not self.rate_bps else 0.8 * self.rate_bps + 0.2 * rate
                window.release()

        await _until_first(write(), acknowledge())

    async def _write_frame(self, stream: Stream, data: bytes) -> None:
        await stream.write(len(data).to_bytes(4, "big") + data, timeout_s=STALL_S)
        self.up_bytes += 4 + len(data)

    # Receiving.

    async def _read_control(self, stream: Stream) -> None:
        try:
            while True:
                self.observer.on_message(stream.remote, await self._read_frame(stream, MESSAGE_LIMIT))
        finally:
            self.observer.on_broken(stream.remote)

    async def _read_bulk(self, stream: Stream) -> None:
        peer = stream.remote
        while True:
            blob = Blob.from_tree(canonical.decode(await self._read_frame(stream, HEADER_LIMIT), limit=HEADER_LIMIT))
            if blob.size is None or blob.size > BLOB_LIMIT:
                raise MalformedError(f"a blob of {blob.size} bytes is more than anything here needs")
            wanted = self.observer.accepts(peer, blob)
            async with self._memory.take(blob.size if wanted else PIECE):
                payload = bytearray()
                for at in range(0, blob.size, PIECE):
                    piece = await stream.read_exactly(min(PIECE, blob.size - at), timeout_s=STALL_S)
                    self.down_bytes += len(piece)
                    if wanted:
                        payload += piece
                        self.observer.on_bytes(peer, blob)
                if wanted and _digest_holds(blob, payload):
                    await self.observer.on_blob(peer, blob, bytes(payload))
            await stream.write(b"\x01", timeout_s=STALL_S)

    async def _read_frame(self, stream: Stream, limit: int) -> bytes:
        size = int.from_bytes(await stream.read_exactly(4, timeout_s=IDLE_S), "big")
        if size > limit:
            raise MalformedError(f"a frame of {size} bytes, at most {limit} are allowed")
        self.down_bytes += 4 + size
        pieces = [await stream.read_exactly(min(PIECE, size - at), timeout_s=STALL_S) for at in range(0, size, PIECE)]
        return b"".join(pieces)


class _Outbound:
    """What waits for one peer on one kind of stream. Full, it drops the oldest: newer messages supersede older ones."""

    def __init__(self) -> None:
        self.queue: deque[bytes | Blob] = deque(maxlen=QUEUE_LIMIT)
        self.filled, self.emptied = asyncio.Event(), asyncio.Event()
        self.task: asyncio.Task[None]

    def push(self, item: bytes | Blob) -> None:
        self.queue.append(item)
        self.filled.set()
        self.emptied.clear()

    async def pop(self) -> bytes | Blob:
        await self.filled.wait()
        item = self.queue.popleft()
        if not self.queue:
            self.clear()
        return item

    def clear(self) -> None:
        self.queue.clear()
        self.filled.clear()
        self.emptied.set()


class _Budget:
    """Bytes of payload that may be in memory at once."""

    def __init__(self, limit: int) -> None:
        self.free = limit
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self.free >= size)
            self.free -= size
        try:
            yield
        finally:
            async with self._changed:
                self.free += size
                self._changed.notify_all()


def _digest_holds(blob: Blob, payload: bytearray) -> bool:
    """MANIFEST and CHUNKS lie under a digest of their content's meaning, which their reader checks."""
    return blob.content in (BlobKind.MANIFEST, BlobKind.CHUNKS) or content_digest(memoryview(payload)) == blob.digest


async def _end_of(stream: Stream) -> None:
    """Return when the remote closes: on a stream that is only written to, nothing else tells."""
    await stream.wait_eof(timeout_s=IDLE_S)


async def _until_first(*coroutines: Awaitable[None]) -> None:
    """Run until the first of them ends, then cancel the others; raises what that one raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
