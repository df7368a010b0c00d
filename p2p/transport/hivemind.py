"""The real network: streams, dialling and signed records over hivemind's p2pd and DHT, in the caller's event loop.

One `HivemindTransport` is one peer. It owns a p2pd and replaces it in place when it dies or freezes: same key, same
port, handlers, records and connections restored; open streams end with `closed`. Every call has a deadline. It does not
know what the streams carry or whether a peer makes progress. Made by the p2p service; `memory` is its twin for tests.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from atoll.p2p.transport import clock, dht_records, torchless
from atoll.p2p.transport.address import Address, parse_address
from atoll.p2p.transport.apart import apart
from atoll.p2p.transport.bootstrap import Bootstrap, group
from atoll.p2p.transport.byte_stream import SocketStream
from atoll.p2p.transport.control import DaemonRefusedError
from atoll.p2p.transport.dialler import Dialler
from atoll.p2p.transport.keeper import DaemonKeeper, Watch
from atoll.p2p.transport.p2pd import RPC_TIMEOUT_S, Daemon, DaemonSettings
from atoll.p2p.transport.port import Stream, StreamHandler, TransportError
from atoll.p2p.transport.slots import StreamSlots
from atoll.p2p.transport.torchless import Hivemind
from atoll.protocol.errors import AtollError
from atoll.protocol.identity import Identity, PeerId, check_peer_id, peer_name

_BOOTSTRAP_TIMEOUT_S = 14.5
_RECORD_TIMEOUT_S = 10.0
_MAX_OWN_RECORDS = 64

_log = logging.getLogger(__name__)
T = TypeVar("T")


class HivemindTransport:
    """A `Transport` and `RecordStore` (see `port`). Make it with `create`, end it with `close`."""

    def __init__(
        self, hivemind: Hivemind, settings: DaemonSettings, initial: dict[PeerId, list[Address]],
        remembered: dict[PeerId, list[Address]], watch: Watch,
    ) -> None:
        self.peer_id = settings.peer_id
        self._hivemind = hivemind
        self._keeper = DaemonKeeper(hivemind, settings, watch)
        self._dialler = Dialler(hivemind, self._keeper)
        self._bootstrap = Bootstrap(initial, remembered, self._dial_initial, self._dialler.is_connected)
        for peer, addresses in [*remembered.items(), *initial.items()]:
            self._dialler.remember(peer, addresses)
        self._handlers: dict[str, StreamHandler] = {}
        self._handling: set[asyncio.Task[Any]] = set()
        self._streams: set[SocketStream] = set()
        self._outgoing, self._incoming = StreamSlots(), StreamSlots()
        self._own_records: OrderedDict[tuple[str, str], tuple[bytes, float]] = OrderedDict()
        self._tasks = asyncio.TaskGroup()
        self._entered = asyncio.Event()
        self._root: asyncio.Task[None] | None = None
        self._failure: TransportError | None = None

    @classmethod
    async def create(
        cls, identity_file: Path, peer_id: PeerId, host_maddrs: Sequence[str], announce_maddrs: Sequence[str],
        initial_peers: Sequence[str], socket_prefix: str, *, upnp: bool = False, nat: bool = True,
        remembered_peers: Sequence[str] = (), watch: Watch | None = None,
    ) -> "HivemindTransport":
        """Listen and begin to join. Returns once this peer listens, whether or not an initial peer can be reached:
        that goes on in the background, and `problems` says what is in the way.

        `initial_peers` were named by a person, `remembered_peers` by other peers some time ago: of those, malformed
        ones are left out, and one that is gone is no problem where others are there.

        Raises TransportError for local faults: `port_taken`, `bad_listen_address`, `malformed_address`,
        `socket_path`, `bad_identity`, `daemon_start`; IdentityError for an unusable key file.
        """
        initial = group(initial_peers, own=peer_id)
        remembered = group(remembered_peers, own=peer_id, trusted=False)
        for announced in announce_maddrs:
            parse_address(announced)
        if Identity.load(identity_file).peer_id != peer_id:
            wrong = f"{identity_file} does not hold the key of {peer_name(peer_id)}; restore the right key file."
            raise TransportError(wrong, "bad_identity")
        settings = DaemonSettings(
            identity_file, peer_id, tuple(host_maddrs), tuple(announce_maddrs), socket_prefix, upnp=upnp, nat=nat)
        transport = cls(torchless.load(), settings, initial, remembered, watch or Watch())
        await transport._keeper.start(transport._prepare)
        transport._root = asyncio.create_task(transport._run(), name=f"transport {peer_name(peer_id)}")
        await transport._entered.wait()  # `serve` may be called at once
        return transport

    @property
    def repairs(self) -> int:
        """How often p2pd was replaced."""
        return self._keeper.repairs

    @property
    def daemon_pid(self) -> int | None:
        """The process id of p2pd; None while it is being replaced."""
        return self._keeper.pid

    async def settled(self) -> None:
        """Wait until one initial peer is connected, or each was tried once (15 s at most), or there is none."""
        await self._bootstrap.settled()

    def problems(self) -> list[dict[str, str]]:
        """What is wrong at present: `code`, `message` (a sentence with its remedy) and `address` (or an empty text)."""
        found = [
            _problem(error, self._dialler.known(peer)[0].text) for peer, error in self._bootstrap.problems.items()
            if not (self._keeper.seen and self._bootstrap.is_remembered(peer))
        ]
        found += [_problem(error) for error in (self._keeper.problem, self._failure) if error is not None]
        offset_s = self._dialler.clocks.offset_s
        if offset_s:
            found.append(_problem(TransportError(
                f"This machine's clock is {abs(offset_s):.0f} s {'behind' if offset_s > 0 else 'ahead of'} its peers' "
                "(records are dated by theirs meanwhile): set it, for example with `timedatectl set-ntp true`.",
                "clock_off")))
        return found

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> Stream:
        self._check_running()
        give_back: Callable[[], None] | None = None
        stream = None
        try:
            async with asyncio.timeout(timeout_s):
                give_back = await self._outgoing.take(peer)
                reader, writer = await self._open_socket(peer, protocol, timeout_s)
            stream = self._stream(peer, reader, writer, give_back)
        except TimeoutError as error:
            if give_back is None:
                busy = f"too many streams to {peer_name(peer)} are open; close some."
                raise TransportError(busy, "stalled") from error
            raise _unreachable(peer, f"it does not answer within {timeout_s:g} s") from error
        finally:
            if stream is None and give_back is not None:
                give_back()
        return stream

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler
        self._spawn(self._register_late(protocol))

    async def connect(self, peer: PeerId, addresses: Sequence[str], *, timeout_s: float) -> None:
        parsed = [parse_address(text) for text in addresses]
        for address in parsed:
            if address.peer not in (None, peer):
                raise TransportError(f"Dialling: {address.text} does not name {peer_name(peer)}.", "malformed_address")
        if parsed:
            self._dialler.remember(check_peer_id(peer), parsed)
        try:
            async with asyncio.timeout(timeout_s):
                if not await self._dialler.is_connected(peer):
                    await self._dialler.dial(peer, self._dialler.known(peer), "Dialling")
                    self._greet_new([peer])
        except TimeoutError as error:
            raise _unreachable(peer, f"it does not answer within {timeout_s:g} s") from error

    def addresses(self) -> list[str]:
        suffix = f"/p2p/{peer_name(self.peer_id)}"
        order: dict[str, tuple[bool, bool, bool]] = {}
        for text in self._keeper.visible:
            whole = text if text.endswith(suffix) else text + suffix
            try:
                address = parse_address(whole)
            except TransportError:
                continue  # of a kind that peers here do not dial
            order[whole] = (address.is_loopback, address.transport != "tcp", address.relayed)
        return sorted(order, key=order.__getitem__)

    async def connected(self) -> list[PeerId]:
        self._check_running()
        try:
            async with asyncio.timeout(RPC_TIMEOUT_S):
                daemon = await self._keeper.live()
                return sorted(await daemon.control.list_peers(timeout_s=RPC_TIMEOUT_S))
        except (TimeoutError, DaemonRefusedError) as error:
            raise TransportError("the libp2p daemon does not answer; it is being replaced.", "stalled") from error

    def time_s(self) -> float:
        return clock.network_time_s()

    async def put(self, key: str, subkey: str, value: bytes, *, lifetime_s: float) -> bool:
        record = dht_records.check_entry(key, subkey, value, self.time_s())
        expires_s = min(record.expires_s, self.time_s() + lifetime_s)
        self._own_records[key, subkey] = (value, expires_s)
        self._own_records.move_to_end((key, subkey))
        while len(self._own_records) > _MAX_OWN_RECORDS:
            self._own_records.popitem(last=False)
        return await self._on_dht(_store, key, subkey, value, expires_s)

    async def get(self, key: str) -> Mapping[str, bytes]:
        return await self._on_dht(dht_records.collect, self._hivemind, key)

    async def close(self) -> None:
        root, self._root = self._root, None
        if root is not None:
            root.cancel()
            await asyncio.gather(root, return_exceptions=True)
        handling = list(self._handling)
        for task in handling:
            task.cancel()
        await asyncio.gather(*handling, return_exceptions=True)
        for stream in list(self._streams):
            await stream.close()
        await self._keeper.stop()

    async def _run(self) -> None:
        try:
            async with self._tasks:
                self._entered.set()
                self._tasks.create_task(self._keeper.run(self._prepare, self._repaired, self._checked))
                self._tasks.create_task(self._bootstrap.run())
        except BaseExceptionGroup as group_error:
            _log.exception("the transport has failed")
            self._failure = TransportError(
                f"The transport has failed ({group_error.exceptions[0]!r}); restart the daemon and report this.",
                "internal")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside everything else. What goes wrong in it is logged: the transport does not depend on it."""
        async def guarded() -> None:
            try:
                await work
            except Exception:  # noqa: BLE001  # hivemind raises what it likes
                _log.exception("work in the background failed")

        if self._root is None or self._root.done():
            work.close()
        else:
            self._tasks.create_task(guarded())

    def _check_running(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._root is None:
            raise TransportError("this transport is closed.", "closed")

    async def _on_dht(self, work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        self._check_running()
        try:
            async with asyncio.timeout(_RECORD_TIMEOUT_S):
                daemon = await self._keeper.live()
                return await apart(work(daemon.node, *arguments))
        except TimeoutError as error:
            raise TransportError(f"the DHT does not answer within {_RECORD_TIMEOUT_S:g} s.", "stalled") from error

    async def _open_socket(
        self, peer: PeerId, protocol: str, timeout_s: float,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        daemon = await self._keeper.live()
        try:
            return await daemon.control.open_stream(peer, protocol, timeout_s=timeout_s)
        except DaemonRefusedError as error:
            if "protocols not supported" in str(error):
                raise _unreachable(peer, f"it does not serve {protocol}") from error
            if not self._dialler.known(peer):
                raise _unreachable(peer, str(error)) from error
        try:
            await self._dialler.dial(peer, self._dialler.known(peer), "Dialling")
            return await daemon.control.open_stream(peer, protocol, timeout_s=timeout_s)
        except (DaemonRefusedError, TransportError) as error:
            raise _unreachable(peer, str(error)) from error

    def _stream(
        self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, give_back: Callable[[], None],
    ) -> SocketStream:
        def released() -> None:
            give_back()
            self._streams.discard(stream)

        stream = SocketStream(peer, reader, writer, released)
        self._streams.add(stream)
        return stream

    async def _prepare(self, daemon: Daemon) -> None:
        for protocol in list(self._handlers):
            await self._register(daemon, protocol)

    async def _register_late(self, protocol: str) -> None:
        """For a handler that came after the start; if p2pd dies over it, its replacement gets the handler anyway."""
        try:
            await self._register(await self._keeper.live(), protocol)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, self._hivemind.DaemonError) as error:
            _log.info("could not register %s yet: %s", protocol, error or "no answer")

    async def _register(self, daemon: Daemon, protocol: str) -> None:
        async def accept(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # In a task of its own: asyncio reports the cancellation of the one it made for hivemind as an error.
            task = asyncio.create_task(self._accept(protocol, info.peer_id.to_bytes(), reader, writer))
            self._handling.add(task)
            task.add_done_callback(self._handling.discard)

        async with asyncio.timeout(RPC_TIMEOUT_S):
            await daemon.p2p.add_binary_stream_handler(protocol, accept)

    async def _accept(
        self, protocol: str, remote: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    ) -> None:
        give_back = None
        try:
            give_back = self._incoming.try_take(check_peer_id(remote))
        except AtollError as error:
            _log.debug("turned a peer away: %s", error)
        if give_back is None:
            writer.transport.abort()
            return
        stream = self._stream(remote, reader, writer, give_back)
        try:
            await self._handlers[protocol](stream)
        except AtollError as error:
            _log.debug("a stream of %s from %s ended: %s", protocol, peer_name(remote), error)
        except Exception:  # noqa: BLE001  # one stream's handler must not end the others, whatever it raised
            _log.exception("the handler of %s failed on a stream from %s", protocol, peer_name(remote))
        finally:
            await stream.close()

    async def _dial_initial(self, peer: PeerId, addresses: Sequence[Address], phase: str) -> None:
        try:
            async with asyncio.timeout(_BOOTSTRAP_TIMEOUT_S):
                await self._dialler.dial(peer, addresses, phase)
        except TimeoutError as error:
            raise TransportError(
                f"{phase}: no connection to {addresses[0].text} within {_BOOTSTRAP_TIMEOUT_S:g} s.", "unreachable",
            ) from error
        # Whoever has `settled` may use the DHT: this peer and the initial one are in each other's routing tables.
        await self._dialler.greet(peer)

    def _greet_new(self, connected: Sequence[PeerId]) -> None:
        for peer in self._dialler.to_greet({*connected, *self._keeper.seen}):
            self._spawn(self._dialler.greet(peer))

    def _checked(self) -> None:
        self._greet_new(list(self._keeper.seen))

    def _repaired(self) -> None:
        self._bootstrap.wake()
        self._spawn(self._restore())

    async def _restore(self) -> None:
        """After a repair: everybody who was connected, then the records this peer had put."""
        await self._dialler.redial(self._keeper.seen_before_repair)
        for (key, subkey), (value, expires_s) in list(self._own_records.items()):
            if expires_s > self.time_s():
                try:
                    await self._on_dht(_store, key, subkey, value, expires_s)
                except TransportError as error:
                    _log.info("could not publish a record again: %s", error)


async def _store(node: Any, key: str, subkey: str, value: bytes, expires_s: float) -> bool:
    return bool(await node.store(key, value, expires_s, subkey=subkey))


def _unreachable(peer: PeerId, why: str) -> TransportError:
    return TransportError(f"{peer_name(peer)} cannot be reached: {' '.join(why.split())[:300]}.", "unreachable")


def _problem(error: TransportError, address: str = "") -> dict[str, str]:
    return {"code": error.code, "message": str(error), "address": address}
