"""Keeps one p2pd alive: notices its death and its freeze, and puts another in its place under the same key and port.

Death is p2pd's exit; a freeze is two control calls in a row without an answer (one alone may be this process's own
pause, after which both the answer and the deadline are overdue). hivemind notices neither. Knows nothing of streams or
records: `prepare` restores handlers before anybody uses the new daemon, `repaired` whatever can come later.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from atoll.p2p.transport.control import DaemonRefusedError
from atoll.p2p.transport.p2pd import Daemon, DaemonSettings, PortReservation, check_socket_prefix, remove_stale_sockets
from atoll.p2p.transport.port import TransportError
from atoll.p2p.transport.torchless import Hivemind
from atoll.protocol.identity import PeerId

_FIRST_DELAY_S = 0.2
_MAX_DELAY_S = 15.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """How p2pd is watched."""

    check_every_s: float = 3.0
    answer_within_s: float = 5.0
    misses: int = 2


class DaemonKeeper:
    def __init__(self, hivemind: Hivemind, settings: DaemonSettings, watch: Watch) -> None:
        """Reserves the ports. Raises TransportError for what is wrong with addresses, ports or the socket prefix."""
        prefix = check_socket_prefix(settings.socket_prefix)
        remove_stale_sockets(prefix)
        self._ports = PortReservation(settings.host_maddrs)
        self._hivemind, self._watch = hivemind, watch
        self._settings = DaemonSettings(**{**settings.__dict__, "socket_prefix": prefix})
        self._daemon: Daemon | None = None
        self._ready = asyncio.Event()
        self.repairs = 0
        self.problem: TransportError | None = None
        self.visible: list[str] = []              # own multiaddrs, as of the last check
        self.seen: dict[PeerId, list[str]] = {}   # connected peers and the address of their end, as of the last check
        self.seen_before_repair: dict[PeerId, list[str]] = {}

    @property
    def pid(self) -> int | None:
        return self._daemon.pid if self._daemon is not None and self._ready.is_set() else None

    async def start(self, prepare: Callable[[Daemon], Awaitable[None]]) -> None:
        """Start the first p2pd. Raises TransportError."""
        try:
            self._daemon = await self._launch(prepare)
        except BaseException:
            self._ports.release()
            raise
        self._ready.set()

    async def live(self) -> Daemon:
        """The daemon to use, after the repair if one is going on; the caller limits the wait."""
        while self._daemon is None or not self._ready.is_set():
            await self._ready.wait()
        return self._daemon

    async def run(
        self, prepare: Callable[[Daemon], Awaitable[None]], repaired: Callable[[], None],
        checked: Callable[[], None],
    ) -> None:
        """Watch and replace until cancelled. `checked` is called after each successful check."""
        while True:
            daemon = await self.live()
            reason = await self._failure(daemon, checked)
            self._ready.clear()
            self.seen_before_repair = self.seen
            _log.warning("the libp2p daemon %s; replacing it under the same key and port", reason)
            await daemon.stop(kill=True)
            self._daemon = await self._relaunch(prepare)
            self.repairs += 1
            self.problem = None
            self._ready.set()
            repaired()

    async def stop(self) -> None:
        self._ready.clear()
        if self._daemon is not None:
            await self._daemon.stop()
        self._ports.release()

    async def _launch(self, prepare: Callable[[Daemon], Awaitable[None]]) -> Daemon:
        daemon = await Daemon.start(self._hivemind, self._settings, self._ports.host_maddrs, self._daemon)
        ready = False
        try:
            await self._check(daemon)
            await prepare(daemon)
            ready = True
        except (OSError, EOFError, DaemonRefusedError, self._hivemind.DaemonError) as error:
            words = f"Starting: the libp2p daemon started and does not answer: {error or 'no answer in time'}."
            raise TransportError(words, "daemon_start") from error
        finally:
            if not ready:
                await daemon.stop()
        return daemon

    async def _relaunch(self, prepare: Callable[[Daemon], Awaitable[None]]) -> Daemon:
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return await self._launch(prepare)
            except TransportError as error:
                self.problem = error
                _log.warning("%s", error, extra={"code": error.code})
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _MAX_DELAY_S)

    async def _failure(self, daemon: Daemon, checked: Callable[[], None]) -> str:
        exited = asyncio.create_task(daemon.exited())
        frozen = asyncio.create_task(self._freeze(daemon, checked))
        try:
            await asyncio.wait({exited, frozen}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return f"ended with status {exited.result()}"
            frozen.result()  # propagates what must not be lost
            return f"has not answered for {self._watch.misses * self._watch.answer_within_s:g} s"
        finally:
            for task in (exited, frozen):
                task.cancel()
            await asyncio.gather(exited, frozen, return_exceptions=True)

    async def _freeze(self, daemon: Daemon, checked: Callable[[], None]) -> None:
        """Return when p2pd has missed `misses` deadlines in a row."""
        missed = 0
        while missed < self._watch.misses:
            try:
                await self._check(daemon)
                missed = 0
                checked()
                await asyncio.sleep(self._watch.check_every_s)
            except (TimeoutError, TransportError, DaemonRefusedError) as error:
                missed += 1
                _log.info("the libp2p daemon missed a check: %s", error or "no answer")

    async def _check(self, daemon: Daemon) -> None:
        _, self.visible = await daemon.control.identify(timeout_s=self._watch.answer_within_s)
        self.seen = await daemon.control.list_peers(timeout_s=self._watch.answer_within_s)
