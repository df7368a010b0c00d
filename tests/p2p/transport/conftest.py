"""Peers to test with: three on each kind of network, started once per module, and helpers that start more.

Unix sockets have short paths, so homes lie in a short temporary folder and not in pytest's.
"""

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from atoll.p2p.transport.hivemind import HivemindTransport
from atoll.p2p.transport.keeper import Watch
from atoll.p2p.transport.memory import MemoryNetwork
from atoll.protocol.identity import Identity

_serial = itertools.count()
QUICK = Watch(check_every_s=0.1, answer_within_s=1.0, misses=2)


@dataclass
class Peer:
    identity: Identity
    transport: Any


@dataclass
class Swarm:
    """Three peers that know each other, a way to start more, and a protocol name that nobody used before."""

    peers: list[Peer]
    start: Callable[[], Awaitable[Peer]]
    serial: Iterator[int] = field(default_factory=itertools.count)

    def protocol(self) -> str:
        return f"/atoll/1/test/{next(self.serial)}"

    async def serve(self, peer: Peer, handler: Any) -> str:
        """Serve `handler` under a new name; return the name when others can reach it."""
        name = self.protocol()
        peer.transport.serve(name, handler)
        other = next(one for one in self.peers if one is not peer)
        async with asyncio.timeout(5):
            while True:
                with contextlib.suppress(Exception):
                    await (await other.transport.open(peer.identity.peer_id, name, timeout_s=5)).close()
                    return name
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="atoll-") as folder:
        yield Path(folder)


async def start_hivemind(home: Path, **changes: Any) -> Peer:
    identity = changes.pop("identity", None)
    key = changes.pop("key", home / f"k{next(_serial)}")
    if identity is None:
        identity = Identity.load_or_create(key)
    settings: dict[str, Any] = {
        "identity_file": key, "peer_id": identity.peer_id, "host_maddrs": ("/ip4/127.0.0.1/tcp/0",),
        "announce_maddrs": (), "initial_peers": (), "socket_prefix": f"{home}/s-{key.name}-",
        "nat": False, "upnp": False, "watch": QUICK,
    }
    return Peer(identity, await HivemindTransport.create(**{**settings, **changes}))


@pytest.fixture
def start(home: Path) -> Callable[..., Awaitable[Peer]]:
    """`await start(**changes)`: one more hivemind peer; the test closes it."""
    async def start_one(**changes: Any) -> Peer:
        return await start_hivemind(home, **changes)

    return start_one


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """`await until(condition)`: for what happens inside a transport and has no event of its own."""
    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def connected() -> Callable[..., Awaitable[None]]:
    """`await connected(peer, peer_id)`: until libp2p has a connection."""
    async def wait(peer: Peer, peer_id: bytes) -> None:
        async with asyncio.timeout(15):
            while peer_id not in await peer.transport.connected():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    return wait


@contextlib.asynccontextmanager
async def hivemind_swarm(home: Path) -> AsyncIterator[Swarm]:
    started: list[Peer] = []

    async def start_one() -> Peer:
        initial = started[0].transport.addresses() if started else ()
        started.append(await start_hivemind(home, initial_peers=initial))
        await started[-1].transport.settled()
        return started[-1]

    try:
        for _ in range(3):
            await start_one()
        await started[2].transport.connect(started[1].identity.peer_id, started[1].transport.addresses(), timeout_s=5)
        yield Swarm(started[:3], start_one)
    finally:
        for peer in started:
            await peer.transport.close()


@contextlib.asynccontextmanager
async def memory_swarm() -> AsyncIterator[Swarm]:
    network = MemoryNetwork()
    started: list[Peer] = []

    async def start_one() -> Peer:
        identity = Identity.generate()
        started.append(Peer(identity, network.join(identity.peer_id)))
        return started[-1]

    for _ in range(3):
        await start_one()
    yield Swarm(started[:], start_one)
    for peer in started:
        await peer.transport.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["memory", "hivemind"])
async def swarm(request: pytest.FixtureRequest, home: Path) -> AsyncIterator[Swarm]:
    async with memory_swarm() if request.param == "memory" else hivemind_swarm(home) as peers:
        yield peers
