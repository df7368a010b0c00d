"""The network in one process, for tests: the same promises as the real one, and the faults one wants to try.

Streams have the back-pressure (about 1 MiB), the closing rule and the errors of `hivemind`; the closing rule is meant
strictly: what a writer's remote has not read when the writer closes is lost, as on QUIC. Faults: `freeze` (accepts
everything, answers nothing), `kill` (gone at once), `partition` (bytes stop, nobody is told). There are no
addresses to dial: peers of one network find each other by identity, and `connect` checks that the other is there.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from atoll.p2p.transport.dht_records import check_entry, merge
from atoll.p2p.transport.port import Stream, StreamHandler, TransportError
from atoll.protocol.errors import AtollError
from atoll.protocol.identity import PeerId, peer_name

CAPACITY = 1 << 20
_PIECE = 1 << 16

_log = logging.getLogger(__name__)


class MemoryNetwork:
    """Peers that reach each other. `clock` gives unix time and may be moved by the test."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.peers: dict[PeerId, MemoryTransport] = {}
        self._frozen: set[PeerId] = set()
        self._side: dict[PeerId, int] = {}
        self.records: dict[str, list[tuple[PeerId, str, bytes, float]]] = {}
        self._changed = asyncio.Event()

    def join(self, peer_id: PeerId) -> "MemoryTransport":
        """A transport for `peer_id`; one that was killed may come back."""
        if peer_id in self.peers:
            raise ValueError(f"{peer_name(peer_id)} is on this network already")
        transport = self.peers[peer_id] = MemoryTransport(self, peer_id)
        return transport

    def freeze(self, peer: PeerId) -> None:
        """`peer` takes connections and bytes until the buffers are full, and does nothing with them."""
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        self._frozen.discard(peer)
        self.tell()

    def kill(self, peer: PeerId) -> None:
        """`peer` is gone: its streams end, its handlers are cancelled, nobody reaches it any more."""
        transport = self.peers.pop(peer, None)
        self._frozen.discard(peer)
        if transport is not None:
            transport.end()
        self.tell()

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """From now on peers of different groups get nothing from each other; those in no group form one more."""
        self._side = {peer: side for side, group in enumerate(groups, start=1) for peer in group}
        self.tell()

    def heal(self) -> None:
        self.partition()

    def linked(self, one: PeerId, other: PeerId) -> bool:
        return self._side.get(one, 0) == self._side.get(other, 0)

    def runs(self, peer: PeerId) -> bool:
        return peer not in self._frozen

    def tell(self) -> None:
        """Wake whoever waits for something to change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds."""
        while not condition():
            await self._changed.wait()


class MemoryTransport:
    """A `Transport` and `RecordStore` (see `port`) on a `MemoryNetwork`; made by its `join`."""

    def __init__(self, network: MemoryNetwork, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.network = self._network = network
        self.handlers: dict[str, StreamHandler] = {}
        self.streams: set[MemoryStream] = set()
        self._handling: set[asyncio.Task[None]] = set()
        self.met: set[PeerId] = set()
        self._closed = False

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> Stream:
        other = await self._reach(peer, timeout_s)
        handler = other.handlers.get(protocol)
        if handler is None:
            raise _unreachable(peer, f"it does not serve {protocol}")
        there, back = _Pipe(self._network, self.peer_id, peer), _Pipe(self._network, peer, self.peer_id)
        other.accept(handler, MemoryStream(other, self.peer_id, there, back))
        return MemoryStream(self, peer, back, there)

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        self.handlers[protocol] = handler

    async def connect(self, peer: PeerId, addresses: Sequence[str], *, timeout_s: float) -> None:  # noqa: ARG002
        await self._reach(peer, timeout_s)

    def addresses(self) -> list[str]:
        return [f"/ip4/127.0.0.1/tcp/4001/p2p/{peer_name(self.peer_id)}"]

    async def connected(self) -> list[PeerId]:
        return sorted(self.met & self._network.peers.keys())

    async def close(self) -> None:
        if not self._closed:
            handling = list(self._handling)
            self._network.kill(self.peer_id)
            await asyncio.gather(*handling, return_exceptions=True)

    def time_s(self) -> float:
        return self._network.clock()

    async def put(self, key: str, subkey: str, value: bytes, *, lifetime_s: float) -> bool:
        record = check_entry(key, subkey, value, self.time_s())
        expires_s = min(record.expires_s, self.time_s() + lifetime_s)
        if self._closed:
            return False
        entries = self._network.records.setdefault(key, [])
        entries.append((self.peer_id, subkey, value, expires_s))
        return True

    async def get(self, key: str) -> Mapping[str, bytes]:
        now_s = self.time_s()
        entries = self._network.records.get(key, [])
        live = [entry for entry in entries if entry[3] > now_s]
        if entries:
            self._network.records[key] = live
        reachable = ((subkey, value) for holder, subkey, value, _ in live if self._network.linked(holder, self.peer_id))
        return merge(key, reachable, now_s)

    def accept(self, handler: StreamHandler, stream: "MemoryStream") -> None:
        """Run the handler on a stream that another peer opened."""
        task = asyncio.get_running_loop().create_task(self._serve_one(handler, stream))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    def end(self) -> None:
        self._closed = True
        for task in self._handling:
            task.cancel()
        for stream in list(self.streams):
            stream.shut()

    async def _reach(self, peer: PeerId, timeout_s: float) -> "MemoryTransport":
        network = self._network
        try:
            async with asyncio.timeout(timeout_s):
                await network.until(lambda: network.runs(self.peer_id))
                if self._closed or peer not in network.peers or peer == self.peer_id:
                    raise _unreachable(peer, "it is not on this network")
                await network.until(lambda: network.linked(self.peer_id, peer))
        except TimeoutError as error:
            raise _unreachable(peer, f"it does not answer within {timeout_s:g} s") from error
        other = network.peers.get(peer)
        if other is None:
            raise _unreachable(peer, "it has left this network")
        self.met.add(peer)
        other.met.add(self.peer_id)
        return other

    async def _serve_one(self, handler: StreamHandler, stream: "MemoryStream") -> None:
        network = self._network
        try:
            await network.until(lambda: network.runs(self.peer_id))
            await handler(stream)
        except AtollError as error:
            _log.debug("a stream from %s ended: %s", peer_name(stream.remote), error)
        except Exception:  # noqa: BLE001  # as on the real network, one stream's handler does not end the others
            _log.exception("a handler failed on a stream from %s", peer_name(stream.remote))
        finally:
            await stream.close()


class MemoryStream:
    """A `Stream` (see `port`) over two pipes."""

    def __init__(self, owner: MemoryTransport, remote: PeerId, incoming: "_Pipe", outgoing: "_Pipe") -> None:
        self.remote = remote
        self._owner, self._incoming, self._outgoing = owner, incoming, outgoing
        self._network = owner.network
        self._closed = False
        owner.streams.add(self)

    async def read_exactly(self, count: int, *, timeout_s: float) -> bytes:
        self._check_open()
        pipe, got = self._incoming, bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                while len(got) < count:
                    await self._network.until(lambda: self._closed or pipe.readable)
                    self._check_open()
                    if not pipe.data:
                        raise self._failed("closed", f"has closed the stream after {len(got)} of {count} bytes")
                    got += pipe.take(count - len(got))
        except TimeoutError as error:
            raise self._failed("stalled", f"sent fewer than {count} bytes in {timeout_s:g} s") from error
        return bytes(got)

    async def write(self, data: bytes | memoryview, *, timeout_s: float) -> None:
        self._check_open()
        pipe, view, finished = self._outgoing, memoryview(data).cast("B"), False
        try:
            async with asyncio.timeout(timeout_s):
                for start in range(0, len(view), _PIECE):
                    await self._network.until(lambda: self._closed or pipe.writable)
                    self._check_open()
                    if pipe.closed:
                        raise self._failed("closed", "has closed the stream")
                    pipe.put(view[start:start + _PIECE])
            finished = True
        except TimeoutError as error:
            raise self._failed("stalled", f"took fewer than {len(view)} bytes in {timeout_s:g} s") from error
        finally:
            if not finished:
                self.shut()

    async def wait_eof(self, *, timeout_s: float) -> None:
        pipe = self._incoming
        try:
            async with asyncio.timeout(timeout_s):
                while not self._closed:
                    await self._network.until(lambda: self._closed or pipe.readable)
                    if not pipe.data:
                        return
                    pipe.take(len(pipe.data))
        except TimeoutError as error:
            raise self._failed("stalled", f"did not close within {timeout_s:g} s") from error

    async def close(self) -> None:
        self.shut()

    def shut(self) -> None:
        if not self._closed:
            self._closed = True
            self._owner.streams.discard(self)
            self._outgoing.end()
            self._incoming.end()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError(f"the stream to {peer_name(self.remote)} is closed.", "closed")

    def _failed(self, code: str, what: str) -> TransportError:
        self.shut()
        return TransportError(f"{peer_name(self.remote)} {what}.", code)


class _Pipe:
    """Bytes on their way from one peer to another."""

    def __init__(self, network: MemoryNetwork, source: PeerId, target: PeerId) -> None:
        self._network, self._source, self._target = network, source, target
        self.data = bytearray()
        self.closed = False

    @property
    def readable(self) -> bool:
        """Something to read, or the end, gets through to a target that runs."""
        return self._flows and self._network.runs(self._target) and (bool(self.data) or self.closed)

    @property
    def writable(self) -> bool:
        return self._network.runs(self._source) and ((self.closed and self._flows) or len(self.data) < CAPACITY)

    @property
    def _flows(self) -> bool:
        return self._network.linked(self._source, self._target)

    def put(self, piece: memoryview) -> None:
        self.data += piece
        self._network.tell()

    def take(self, count: int) -> bytes:
        taken = bytes(self.data[:count])
        del self.data[:count]
        self._network.tell()
        return taken

    def end(self) -> None:
        """Closed by either end: what has not been read is lost."""
        self.closed = True
        self.data.clear()
        self._network.tell()


def _unreachable(peer: PeerId, why: str) -> TransportError:
    return TransportError(f"{peer_name(peer)} cannot be reached: {why}.", "unreachable")
