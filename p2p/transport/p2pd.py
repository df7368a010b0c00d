"""One running p2pd with hivemind's P2P and DHT node on it: started with its port checked, ended without a trace.

Knows how to start, watch and end one; who replaces it when it fails is the hivemind transport's business. Sockets lie
under the caller's prefix, where the next start finds and removes what a SIGKILL left; hivemind's own place would be
/tmp. The port is reserved for as long as the peer lives, across replacements too.
"""

import asyncio
import contextlib
import glob
import os
import signal
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.p2p.transport import dht_records
from atoll.p2p.transport.address import Address, parse_address
from atoll.p2p.transport.apart import apart
from atoll.p2p.transport.control import Control
from atoll.p2p.transport.diagnose import check_can_listen
from atoll.p2p.transport.port import TransportError
from atoll.p2p.transport.torchless import Hivemind
from atoll.protocol.identity import PeerId

START_TIMEOUT_S = 10.0
RPC_TIMEOUT_S = 3.0
_STOP_TIMEOUT_S = 2.0
_MAX_SOCKET_PATH = 107  # sun_path holds 108 bytes with the final NUL
_SOCKET_NAME = "p2pclient-" + "x" * 11 + ".sock"


@dataclass(frozen=True)
class DaemonSettings:
    identity_file: Path
    peer_id: PeerId
    host_maddrs: tuple[str, ...]
    announce_maddrs: tuple[str, ...]
    socket_prefix: str
    upnp: bool
    nat: bool


class PortReservation:
    """The listening ports of a peer, checked to be free, chosen where they were 0, and kept from others.

    A bound TCP socket with SO_REUSEPORT that never listens gets no connections and lets p2pd (which sets it, too) bind
    beside it; another program, and another peer's check, finds the port taken.
    """

    def __init__(self, host_maddrs: tuple[str, ...]) -> None:
        """Raises TransportError `port_taken`, `bad_listen_address` or `malformed_address`."""
        self.host_maddrs: list[str] = []
        self._held: list[socket.socket] = []
        try:
            for text in host_maddrs:
                self.host_maddrs.append(self._reserve(parse_address(text)))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        for held in self._held:
            held.close()
        self._held.clear()

    def _reserve(self, address: Address) -> str:
        if address.is_name or address.peer:
            raise TransportError(
                f"Listening: {address.text} cannot be listened at: name an IP address of this machine and a port, "
                "such as /ip4/0.0.0.0/tcp/4001", "bad_listen_address")
        port = check_can_listen(address)
        if address.transport == "tcp":  # a bound UDP socket would get packets, so UDP ports are only checked
            family = socket.AF_INET6 if address.family == "IPv6" else socket.AF_INET
            holder = socket.socket(family, socket.SOCK_STREAM)
            self._held.append(holder)
            if family == socket.AF_INET6:
                holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind((address.host, port))
        return address.with_port(port)


class Daemon:
    """A p2pd process with its DHT node. Made by `start`; ended by `stop`, in whatever state it is."""

    def __init__(self, p2p: Any, node: Any, control: Control) -> None:
        self.p2p, self.node, self.control = p2p, node, control

    @property
    def pid(self) -> int:
        return int(self.p2p._child.pid)  # hivemind has no public way to its child

    async def exited(self) -> int:
        """Wait for p2pd's end; its exit status (hivemind's `is_alive` stays True)."""
        return int(await self.p2p._child.wait())

    @classmethod
    async def start(
        cls, hivemind: Hivemind, settings: DaemonSettings, host_maddrs: list[str], previous: "Daemon | None" = None,
    ) -> "Daemon":
        """Start p2pd and a DHT node on it; the DHT's records and routes are taken over from `previous`.

        Raises TransportError `daemon_start` with p2pd's words.
        """
        p2p_class = _p2p_class(hivemind, settings.socket_prefix)
        started = False
        try:
            async with asyncio.timeout(START_TIMEOUT_S + RPC_TIMEOUT_S):
                p2p = await apart(p2p_class.create(
                    identity_path=str(settings.identity_file), check_if_identity_free=False,
                    host_maddrs=host_maddrs, announce_maddrs=list(settings.announce_maddrs) or None,
                    nat_port_map=settings.upnp, auto_nat=settings.nat, use_relay=settings.nat,
                    use_auto_relay=settings.nat, dht_mode="server", startup_timeout=START_TIMEOUT_S,
                ))
                control = Control(hivemind, p2p._daemon_listen_maddr["unix"])
                node = await apart(_dht_node(hivemind, p2p, settings.peer_id, previous))
            started = True
        except (TimeoutError, OSError, ValueError, hivemind.DaemonError) as error:
            late = f"it was not ready within {START_TIMEOUT_S:.0f} s"
            words = late if isinstance(error, TimeoutError) else str(error)
            raise TransportError(f"Starting: the libp2p daemon did not start: {words}", "daemon_start") from error
        finally:
            if not started and p2p_class.newest is not None:
                await _end(p2p_class.newest)
        return cls(p2p, node, control)

    async def stop(self, *, kill: bool = False) -> None:
        """End p2pd for good, frozen or dead as it may be, and remove its sockets; `kill`: without asking first."""
        self.node.is_alive = False
        if self.node.cache_refresh_task is not None:
            self.node.cache_refresh_task.cancel()
        await _end(self.p2p, patience_s=0 if kill else _STOP_TIMEOUT_S)


def check_socket_prefix(prefix: str) -> str:
    """The prefix as an absolute path that leaves room for a socket's name. Raises TransportError `socket_path`."""
    path = os.path.abspath(prefix) + ("/" if prefix.endswith("/") else "")  # noqa: PTH100  # the prefix is no path yet
    if len(os.fsencode(path + _SOCKET_NAME)) > _MAX_SOCKET_PATH:
        raise TransportError(
            f"Starting: sockets under {path} would have paths of more than {_MAX_SOCKET_PATH} bytes, which the system "
            "does not allow: choose a shorter runtime folder.", "socket_path")
    folder = Path(path + "x").parent
    if not os.access(folder, os.W_OK | os.X_OK):
        sentence = f"Starting: cannot create sockets in {folder}: make it a folder of your own."
        raise TransportError(sentence, "socket_path")
    return path


def remove_stale_sockets(prefix: str) -> int:
    """Remove sockets that a killed daemon left under `prefix` (the caller holds the home's lock); how many."""
    removed = 0
    folder, name = os.path.split(prefix)
    for path in Path(folder).glob(glob.escape(name) + "p2p*-*.sock"):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
                removed += 1
    return removed


def _p2p_class(hivemind: Hivemind, prefix: str) -> Any:
    class AtollP2P(hivemind.P2P):  # type: ignore[misc, name-defined]
        _UNIX_SOCKET_PREFIX = "/unix" + prefix
        newest: Any = None  # `create` loses its instance, and with it the child, when it is cancelled or fails

        def __init__(self) -> None:
            super().__init__()
            type(self).newest = self

    return AtollP2P


async def _dht_node(hivemind: Hivemind, p2p: Any, peer_id: PeerId, previous: Daemon | None) -> Any:
    node = await hivemind.DHTNode.create(
        p2p=p2p, node_id=hivemind.DHTID.generate(source=peer_id), wait_timeout=RPC_TIMEOUT_S,
        record_validator=dht_records.make_validator(hivemind),
        cache_locally=False, cache_on_store=False, cache_nearest=0, reuse_get_requests=False,
    )
    node.protocol.storage = previous.node.protocol.storage if previous else dht_records.make_storage(hivemind)
    node.protocol.cache = dht_records.make_storage(hivemind)
    if previous:
        node.protocol.routing_table = previous.node.protocol.routing_table
    return node


async def _end(p2p: Any, patience_s: float = _STOP_TIMEOUT_S) -> None:
    """SIGTERM, then SIGKILL (a stopped process does not take the first), then the sockets that remain."""
    child = p2p._child
    p2p._terminate()  # everything of `shutdown` but its wait, which has no limit
    if child is not None:
        try:
            async with asyncio.timeout(patience_s):
                await child.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGKILL)
            await child.wait()
        child._transport.close()
    for name in ("_daemon_listen_maddr", "_client_listen_maddr"):
        maddr = getattr(p2p, name, None)  # `create` may have failed before it named them
        if maddr is not None:
            Path(maddr["unix"]).unlink(missing_ok=True)  # noqa: ASYNC240  # one file, on a memory file system
