"""The supervisor's line to the p2p service's process: what it said last, and questions to it.

Connects again whenever the service was restarted. Looks at its status once a second, since a service that has trouble
starting has nobody to send events. Called by the supervisor.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from atoll.node.errors import IpcError
from atoll.node.ipc_async import Connection, Listener, connect, refuse
from atoll.protocol.errors import AtollError

_POLL_S = 1.0
_RETRY_S = 0.1
_ANSWER_S = 2.0

log = logging.getLogger(__name__)


class ServiceLink:
    def __init__(self, path: Path, on_event: Listener, on_status: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        self._path = path
        self._on_event = on_event
        self._on_status = on_status
        self._connection: Connection | None = None
        self.last: dict[str, Any] = {}  # its last status, whenever that was

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    async def run(self) -> None:
        """Ends only by cancellation."""
        while True:
            try:
                connection = await connect(self._path, refuse, self._on_event)
            except OSError:
                await asyncio.sleep(_RETRY_S)  # nobody tells when a socket appears
                continue
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(connection.run())
                tasks.create_task(self._follow(connection, running))
            self._connection = None

    async def ask(self, call: str, args: Mapping[str, Any] | None = None, timeout_s: float = _ANSWER_S) -> Any:
        """Raises IpcError if the service is not there or does not answer in time, CallError for its refusal."""
        if self._connection is None or self._connection.closed:
            raise IpcError("the p2p service is just starting: try again in a moment.")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connection.request(call, args)
        except TimeoutError as error:
            raise IpcError(
                f"the p2p service does not answer within {timeout_s:g} s: try again, or see `atoll logs`."
            ) from error

    async def fresh_status(self) -> dict[str, Any]:
        """The service's status now, or its last one. Raises IpcError where it is not there."""
        self.last = dict(await self.ask("status"))
        return self.last

    async def _follow(self, connection: Connection, running: asyncio.Task[None]) -> None:
        self._connection = connection
        try:
            for evaluation in await self.ask("watch"):
                self._on_event("evaluated", dict(evaluation))
            while not connection.closed:
                await self._on_status(await self.fresh_status())
                await asyncio.wait({running}, timeout=_POLL_S)
        except AtollError as error:
            log.info("the p2p service's line broke: %s", error)
        finally:
            connection.close()
