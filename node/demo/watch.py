"""Following the peers by their homes' sockets, so that a daemon started by somebody else is followed just the same.

A peer that does not answer is GONE when no process holds its home, SILENT when one does (frozen, or too busy).
What is asked is what `atoll status` asks. Called by the show.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from atoll.node.demo.snapshot import Snapshot, read_snapshot
from atoll.node.demo.swarm import Peer
from atoll.node.errors import CallError, IpcError
from atoll.node.ipc_async import Connection, connect, ignore_event, refuse
from atoll.node.paths import Home

Ask = Callable[[Home], Awaitable[Mapping[str, Any] | None]]
"""The status of the daemon on a home, or None if nobody answers there."""

_PATIENCE_S = 1.0


async def ask_status(home: Home) -> Mapping[str, Any] | None:
    """An `Ask`: over the daemon's own socket, waiting no longer than a view can."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            connection = await connect(home.api_socket, refuse, ignore_event)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(connection.run())
                return await _request(connection)
    except (OSError, TimeoutError):  # nobody there, or frozen
        return None


async def _request(connection: Connection) -> Mapping[str, Any] | None:
    try:
        status = await connection.request("status")
    except (CallError, IpcError):  # it is just starting, or just ending
        return None
    finally:
        connection.close()
    return status if isinstance(status, Mapping) else None


class Watch:
    """The last that was seen of each peer, every held-out loss that any of them reported, and the training loss."""

    def __init__(self, ask: Ask) -> None:
        self._peers: Sequence[Peer] = ()
        self._ask = ask
        self.snapshots: Sequence[Snapshot] = ()
        self.evaluations: dict[int, float] = {}
        self._training: dict[int, dict[int, float]] = {}  # round -> peer -> loss of its last inner step seen

    def follow(self, peers: Sequence[Peer]) -> None:
        """Watch these peers from now on."""
        self._peers = peers
        self.snapshots = [Snapshot(peer.index, peer.name) for peer in peers]

    async def poll(self) -> Sequence[Snapshot]:
        """Ask everybody once, side by side."""
        self.snapshots = await asyncio.gather(*map(self._look, self._peers, self.snapshots))
        for snapshot in self.snapshots:
            # Replicas are equal, so whoever measured first is right for all.
            self.evaluations = {**snapshot.evaluations, **self.evaluations}
            if snapshot.alive and snapshot.state != "FINISHED" and snapshot.loss is not None and snapshot.inner_step:
                self._training.setdefault(snapshot.round, {})[snapshot.index] = snapshot.loss
        return self.snapshots

    @property
    def curve(self) -> list[float]:
        """Training loss at the end of each round, the mean over the peers, in order; the last one is still going on."""
        return [sum(losses.values()) / len(losses) for _, losses in sorted(self._training.items())]

    async def _look(self, peer: Peer, last: Snapshot) -> Snapshot:
        status = await self._ask(peer.home)
        if status is not None:
            return read_snapshot(peer.index, peer.name, status)
        if peer.killed:
            return replace(last, state="KILLED")
        if peer.pid is not None:
            return replace(last, state="STARTING" if last.state in ("STARTING", "GONE") else "SILENT")
        return replace(last, state="GONE" if peer.process is not None else "STARTING")
