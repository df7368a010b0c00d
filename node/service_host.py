"""The p2p service behind a local socket: what the trainer and the supervisor may ask it, and what they are told.

The trainer (rank 0) calls `latest`, `wait_next`, `contribute`, `evaluated` and sends `progress`; it is told `hello`,
`outer` and `freeze`. The supervisor calls `status`, `peers`, `rounds`, `addresses` and, after `watch`, hears `progress`
and `evaluated` too. Knows the service only as `Service`, so the tests drive it with a small fake. Run by
`service_process`.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from atoll.node import ipc, shared_vector
from atoll.node.errors import DrainingError, IpcError
from atoll.node.ipc_async import Connection, Reply, Server

_EVALUATIONS = 1024

log = logging.getLogger(__name__)


class Outer(Protocol):
    @property
    def parent(self) -> bytes: ...
    @property
    def round(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    @property
    def params(self) -> npt.NDArray[np.float32]: ...


class Service(Protocol):
    """The part of `PeerService` that is spoken to once the outer state is held."""

    def outer(self) -> Outer: ...
    async def contribute(self, parent: bytes, tokens: int, steps: int, vector: npt.NDArray[np.float32]) -> None: ...
    def nothing_to_contribute(self, parent: bytes) -> None: ...
    def progress(self, parent: bytes, inner_step: int, inner_steps: int, tokens: int) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def peers(self) -> list[dict[str, Any]]: ...
    def rounds(self) -> list[dict[str, Any]]: ...
    def live_addresses(self) -> list[str]: ...


class ServiceHost:
    """Also the service's `Observer`: `freeze` and `state_changed` are called in the event loop and return at once."""

    def __init__(self, socket_path: Path) -> None:
        self.server = Server(socket_path, self._answer, on_event=self._event, on_open=self._greet)
        self._instance = os.urandom(8)  # a trainer that sees another one hands its contribution over again
        self._service: Service | None = None
        self._held = False
        self._draining = False
        self._waiters: list[asyncio.Future[None]] = []
        self._frozen: bytes | None = None
        self._contributed: bytes | None = None  # parent of the trainer's last contribution
        self._watchers: set[Connection] = set()
        self._trainers: set[Connection] = set()  # connections on which a trainer has asked for a state
        self._trouble: dict[str, str] | None = None
        self._trainer: dict[str, Any] = {}
        self._evaluations: deque[dict[str, Any]] = deque(maxlen=_EVALUATIONS)  # for a watcher that comes later

    # What the process around the service tells

    def attach(self, service: Service) -> None:
        """From now on requests go to this service."""
        self._service = service

    def hold(self) -> None:
        """The service holds an outer state: `latest` answers from now on."""
        self._held = True
        self._trouble = None
        self._tell_outer()
        if not self._trainer:  # else the trainer has outlived the service before this one and is at work
            self._excuse()

    def drain(self) -> None:
        """Nothing new is begun: those who wait for a next state are told so, and wait for the service's successor."""
        self._draining = True
        self._wake()

    def trouble(self, code: str, message: str) -> None:
        """Why there is no service yet; `status` shows it until `hold`."""
        self._trouble = {"code": code, "message": message}

    # Observer of the service

    def freeze(self, parent: bytes) -> None:
        self._frozen = parent
        self.server.broadcast("freeze", {"parent": parent})

    def state_changed(self) -> None:
        if self._held:
            self._tell_outer()
            self._excuse()

    def _tell_outer(self) -> None:
        if self._service is not None:
            self.server.broadcast("outer", {"parent": self._service.outer().parent})
            self._wake()

    def _excuse(self) -> None:
        """Others need not wait for a peer whose trainer is not there: it has died, or still loads after a restart.

        At genesis they do, since everybody starts then; else the quickest would close the first rounds alone.
        """
        self._trainers = {connection for connection in self._trainers if not connection.closed}
        if self._service is not None and self._service.outer().round and not self._trainers:
            self._service.nothing_to_contribute(self._service.outer().parent)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # The socket's side

    def _greet(self, connection: Connection) -> None:
        parent = self._service.outer().parent if self._service is not None and self._held else None
        connection.notify("hello", {
            "instance": self._instance, "parent": parent, "frozen": self._frozen,
        })

    async def _answer(self, connection: Connection, frame: ipc.Frame) -> Any:
        match frame.call:
            case "latest":
                self._trainers.add(connection)
                return await self._next_state(None)
            case "wait_next":
                self._trainers.add(connection)
                return await self._wait_next(_field(frame.args, "parent", bytes))
            case "contribute":
                return await self._contribute(frame)
            case "evaluated":
                self._evaluations.append(frame.args)
                return self._tell_watchers("evaluated", frame.args)
            case "watch":
                self._watchers.add(connection)
                return list(self._evaluations)
        return self._look(frame)

    def _look(self, frame: ipc.Frame) -> Any:
        """Requests that are answered at once."""
        if frame.call == "status":
            return self._status()
        if self._service is None:
            raise IpcError("the p2p service has not started yet")
        match frame.call:
            case "peers":
                return self._service.peers()
            case "rounds":
                first, count = _field(frame.args, "first", int), _field(frame.args, "count", int)
                return self._service.rounds()[first:first + count]
            case "last_round":
                return next(iter(self._service.rounds()[-1:]), None)
            case "addresses":
                return self._service.live_addresses()
        raise IpcError(f"unknown request {str(frame.call)[:40]!r}")

    def _event(self, event: str, args: dict[str, Any]) -> None:
        if event != "progress":
            log.warning("an unknown event", extra={"event": event[:40]})
            return
        try:
            parent, step = _field(args, "parent", bytes), _field(args, "inner_step", int)
            steps, tokens = _field(args, "inner_steps", int), _field(args, "tokens", int)
        except IpcError as error:
            log.warning("progress that is %s", error)
            return
        self._trainer = {key: value for key, value in args.items() if key != "parent"}
        outer = self._service.outer() if self._service is not None and self._held else None
        current = outer is not None and outer.parent == parent
        self._tell_watchers("progress", {**args, "round": outer.round if outer is not None and current else None})
        if self._service is not None and current:
            self._service.progress(parent, step, steps, tokens)

    def _tell_watchers(self, event: str, args: Mapping[str, Any]) -> None:
        for connection in list(self._watchers):
            if connection.closed:
                self._watchers.discard(connection)
            else:
                connection.notify(event, args)

    def _status(self) -> dict[str, Any]:
        status = dict(self._service.status()) if self._service is not None else {"state": "STARTING"}
        if self._trouble is not None:
            status |= {"reason": dict(self._trouble)}
        return {**status, "held": self._held, "trainer": self._trainer}

    async def _wait_next(self, parent: bytes) -> Any:
        if self._service is not None and self._held and parent != self._contributed:
            self._service.nothing_to_contribute(parent)  # others need not wait for this peer
        return await self._next_state(parent)

    async def _next_state(self, after: bytes | None) -> Any:
        """The outer state once it is another than that behind `after`. Raises DrainingError."""
        outer = (await self._holding(after)).outer()
        descriptor = shared_vector.publish(outer.params)  # here and now: the vector changes once the loop runs again
        head = {"parent": outer.parent, "round": outer.round, "tokens": outer.tokens, "finished": outer.finished}
        return Reply({**head, "numel": outer.params.size}, [descriptor])

    async def _holding(self, other_than: bytes | None = None) -> Service:
        """The service, once it holds a state other than the one behind `other_than`. Raises DrainingError."""
        while not (self._draining or self._is_other(other_than)):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if self._draining or self._service is None:
            raise DrainingError("the p2p service is being stopped")
        return self._service

    def _is_other(self, parent: bytes | None) -> bool:
        """Whether a state is held, and it is not the one behind `parent`."""
        return self._service is not None and self._held and self._service.outer().parent != parent

    async def _contribute(self, frame: ipc.Frame) -> bool:
        """Whether the contribution still counts: its parent is the state in force."""
        parent, tokens = _field(frame.args, "parent", bytes), _field(frame.args, "tokens", int)
        steps = _field(frame.args, "steps", int)
        if len(frame.files) != 1:
            raise IpcError(f"a contribution with {len(frame.files)} vectors")
        service = await self._holding()
        outer = service.outer()
        if parent != outer.parent:
            return False
        vector = shared_vector.attach(frame.files[0], outer.params.size)
        self._contributed = parent
        await service.contribute(parent, tokens, steps, vector)
        return True


def _field(args: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = args.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 0):
        raise IpcError(f"without a proper `{name}`")
    return value
