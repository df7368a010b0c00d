"""What a running daemon answers on its API socket: one method per command. Called by `ipc_async.Server`.

Knows how to put the supervisor's parts together, and starts nothing itself but the end (`down`).
"""

import os
import time
from typing import Any

from atoll.node import ipc
from atoll.node.errors import IpcError, UsageError
from atoll.node.invite import format_invite
from atoll.node.ipc_async import Connection
from atoll.node.status import assemble
from atoll.node.supervisor import Supervisor
from atoll.protocol.errors import AtollError
from atoll.protocol.identity import peer_name

_ROWS_AT_ONCE = 1000


class DaemonApi:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def answer(self, connection: Connection, frame: ipc.Frame) -> Any:  # noqa: ARG002  every caller is the owner
        match frame.call:
            case "status":
                return await self.status()
            case "peers":
                return await self._supervisor.link.ask("peers")
            case "rounds":
                return await self._rounds(frame.args)
            case "history":
                trainer = self._supervisor.trainer
                return {"losses": trainer.losses(), "evaluations": trainer.evaluations()}
            case "invite":
                return await self._invite()
            case "down":
                self._supervisor.end()
                return os.getpid()
        raise IpcError(f"the daemon knows no request {str(frame.call)[:40]!r}: it is of another version of atoll.")

    async def status(self) -> dict[str, Any]:
        supervisor = self._supervisor
        launch = supervisor.launch
        try:
            service = await supervisor.link.fresh_status()
        except AtollError:
            service = {**supervisor.link.last, "state": "STARTING"}
        own: dict[str, Any] = {
            "peer_id": peer_name(launch.peer_id),
            "home": str(launch.home.root),
            "pid": os.getpid(),
            "port": launch.port,
            "trains": launch.trains,
            "run_id": launch.run.run_id.hex() if launch.run is not None else None,
            "run_name": launch.run.name if launch.run is not None else "",
            "ranks": supervisor.rank_pids,
            "restarts": supervisor.restarts,
            "uptime_s": round(time.monotonic() - supervisor.started, 1),
        }
        if supervisor.own_reason is not None:
            own["reason"] = supervisor.own_reason
        if supervisor.failed:
            own["state"] = "FAILED"
        return assemble(service, supervisor.trainer, own, supervisor.warnings)

    async def _rounds(self, args: dict[str, Any]) -> Any:
        first, count = args.get("first"), args.get("count")
        if not isinstance(first, int) or not isinstance(count, int) or first < 0 or not 0 < count <= _ROWS_AT_ONCE:
            raise IpcError("rounds are asked for by `first` and `count`")
        return await self._supervisor.link.ask("rounds", {"first": first, "count": count})

    async def _invite(self) -> str:
        run = self._supervisor.launch.run
        if run is None:
            raise UsageError("this node is on no run, so there is nothing to invite to.")
        return format_invite(run.run_id, list(await self._supervisor.link.ask("addresses")))
