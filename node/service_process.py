"""The p2p service's process: `python -m atoll.node.service_process`, started by the supervisor only.

Opens the network (again and again while a local port is taken or no bootstrap peer answers, saying why), gets the
manifest, enters the run, and serves the trainer and the supervisor until it is asked to stop. Holds no policy: the
round is `atoll.p2p`'s, restarts are the supervisor's.
"""

import asyncio
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.node import lifeline
from atoll.node.child_main import run_child
from atoll.node.paths import make_folder, write_home_file
from atoll.node.service_host import ServiceHost
from atoll.p2p.service import PeerService, ServiceSettings
from atoll.p2p.transport.port import TransportError
from atoll.protocol.identity import Identity
from atoll.protocol.manifest import MANIFEST_LIMIT, Manifest

_DRAIN_S = 3.0
_LOCAL_FAULTS = frozenset({"port_taken", "bad_listen_address"})
_LOCAL_PATIENCE_S = 60.0
_PAUSE_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessSettings:
    """What the supervisor sends over the lifeline."""

    service: ServiceSettings
    socket: Path
    run_id: bytes | None   # None: a bootstrap and relay node without a run
    genesis: Path | None   # a file that its owner made; None: from the run's folder or from peers

    @classmethod
    def read(cls, tree: dict[str, Any]) -> "ProcessSettings":
        service = ServiceSettings(
            identity_file=Path(tree["identity_file"]),
            run_folder=Path(tree["run_folder"]),
            socket_prefix=tree["socket_prefix"],
            host_maddrs=tuple(tree["host_maddrs"]),
            announce_maddrs=tuple(tree["announce_maddrs"]),
            initial_peers=tuple(tree["initial_peers"]),
            trains=tree["trains"],
            upnp=tree["upnp"],
            nat=tree["nat"],
            ticket=tree["ticket"],
        )
        return cls(service, Path(tree["socket"]), tree["run_id"], Path(tree["genesis"]) if tree["genesis"] else None)


def main() -> int:
    return run_child("service", lambda tree: asyncio.run(_run(ProcessSettings.read(tree))))


async def _run(settings: ProcessSettings) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def ask_to_stop() -> None:
        loop.call_soon_threadsafe(stop.set)

    lifeline.watch(ask_to_stop)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    host = ServiceHost(settings.socket)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(host.server.run())
        await _until(stop, _live(settings, host))
        serving.cancel()


async def _live(settings: ProcessSettings, host: ServiceHost) -> None:
    make_folder(settings.service.run_folder)
    service = await _open(settings, host)
    host.attach(service)
    try:
        if settings.run_id is not None:
            await service.enter(await _manifest(settings, service), settings.genesis)
            host.hold()
        # Until `_until` cancels it: had it seen `stop` itself, the cancellation would hit the goodbye below.
        await asyncio.get_running_loop().create_future()
    finally:
        host.drain()
        await service.close(_DRAIN_S)


async def _open(settings: ProcessSettings, host: ServiceHost) -> PeerService:
    """A service whose network is open. A fault is told and tried again; raises TransportError if ours and lasting."""
    identity = Identity.load(settings.service.identity_file)
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        service = PeerService(settings.service, identity, host)
        try:
            await service.open()
        except TransportError as error:
            await service.close(0.0)
            if error.code in _LOCAL_FAULTS and loop.time() - started > _LOCAL_PATIENCE_S:
                raise
            log.warning("the network did not open: %s", error)
            host.trouble(error.code, str(error))
        except BaseException:
            await service.close(0.0)
            raise
        else:
            return service
        await asyncio.sleep(_PAUSE_S)  # nobody tells when a port is free or a remote peer is back


async def _manifest(settings: ProcessSettings, service: PeerService) -> Manifest:
    """The run's manifest: the home's copy, else fetched from peers and kept."""
    path = settings.service.run_folder / "manifest"
    try:
        with path.open("rb") as file:
            manifest = Manifest.parse(file.read(MANIFEST_LIMIT + 1))
    except FileNotFoundError:
        manifest = await service.fetch_manifest(settings.run_id or b"")
        write_home_file(path, manifest.signed_bytes())
    return manifest


async def _until(stop: asyncio.Event, work: Any) -> None:
    """Run `work` to its end; once `stop` is set it is cancelled and may clean up."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        watcher = tasks.create_task(stop.wait())
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        watcher.cancel()
        task.cancel()


if __name__ == "__main__":
    sys.exit(main())
