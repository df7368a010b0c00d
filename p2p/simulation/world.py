"""One seed's world: clock, network, peers, watch and faults, from the first start to the quiet end.

Puts the pieces together and says when it is over. `runner` makes one for each seed.
"""

import random
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from atoll.p2p.simulation.clock import Clock
from atoll.p2p.simulation.disk import Disk
from atoll.p2p.simulation.faults import Injector
from atoll.p2p.simulation.finish import check_end
from atoll.p2p.simulation.liveness import Liveness
from atoll.p2p.simulation.membership import Membership
from atoll.p2p.simulation.network import Network
from atoll.p2p.simulation.oracle import Oracle
from atoll.p2p.simulation.peer import Peer
from atoll.p2p.simulation.plan import NUMEL, Fault, Plan, Scenario, draw
from atoll.p2p.simulation.punctuality import Punctuality
from atoll.p2p.simulation.torn import JournalFile
from atoll.p2p.simulation.watch import Violation, Watch
from atoll.p2p.workshop import OuterState
from atoll.protocol.digest import Digest
from atoll.protocol.identity import PeerId
from atoll.protocol.standing import JOURNAL_BYTES

Vector = npt.NDArray[np.float32]

CROWD, FEW = 64, 8
REAL_JOURNALS = 16  # one seed of so many keeps its journals as bytes in files


@dataclass
class SeedResult:
    """What one seed came to."""

    seed: int
    round: int  # of the surviving tip
    forks: int
    injected: dict[str, int]
    violations: tuple[Violation, ...]
    virtual_s: float
    events: int
    tip: str  # certificate id of the surviving tip: the same for the same seed
    messages: dict[str, list[int]] = field(default_factory=dict)  # by kind: of each peer that ever ran
    sizes: dict[str, list[int]] = field(default_factory=dict)


class World:
    def __init__(self, plan: Plan, seed: int) -> None:
        self.scenario: Scenario = draw(plan, seed)
        self.clock = Clock()
        self._journals = random.Random(f"atoll journals {seed}")
        scenario = self.scenario
        real = Fault.TORN_JOURNAL in plan.faults and seed % REAL_JOURNALS == 0
        self._folder = TemporaryDirectory(prefix="atoll-sim-", dir=_quick_folder()) if real else None
        self._files: list[JournalFile] = []
        self.oracle = Oracle(scenario.manifest, scenario.genesis)
        names = {peer.identity.peer_id: f"p{index}" for index, peer in enumerate(scenario.peers)}
        self.watch = Watch(self.clock, seed, self.oracle, names)
        self.membership = self.watch.membership = Membership(self)
        self.punctuality = self.watch.punctuality = Punctuality(self)
        self.network = Network(self.clock, seed, scenario.manifest.run_id, scenario.sample)
        self.peers = [Peer(self, index, peer) for index, peer in enumerate(scenario.peers)]
        self.network.peers = {peer.id: peer for peer in self.peers}
        self.check_every_s = scenario.settings.heartbeat_s / 15
        self.injector = Injector(self)
        self.liveness = Liveness(self)

    # What peers need of the world.

    def new_journal(self) -> bytes:
        return self._journals.randbytes(JOURNAL_BYTES)

    def new_disk(self, generation: int = 0) -> Disk:
        journal = self.new_journal()
        file = None
        if self._folder is not None:
            file = JournalFile(Path(self._folder.name) / journal.hex(), journal)
            self._files.append(file)
        return Disk(journal, generation=generation, file=file)

    def genesis_state(self) -> OuterState:
        params = self.scenario.genesis.copy()
        momentum = None if self.scenario.manifest.draft.outer.momentum == 0 else np.zeros_like(params)
        return OuterState(self.scenario.manifest.run_id, 0, 0, params, momentum)

    def gradient(self, peer: Peer, base: Digest, steps: int) -> Vector:
        """A pseudo-gradient that nobody else makes, and this peer only once."""
        seed = int.from_bytes(base[:8], "little") ^ peer.index << 64 ^ peer.disk.generation << 80
        values = np.random.Generator(np.random.SFC64(seed)).standard_normal(NUMEL, dtype=np.float32)
        return values * np.float32(0.01 * steps)

    def honest(self) -> list[Peer]:
        """Who is alive and has not equivocated: the others may be ignored for good."""
        return [peer for peer in self.peers if peer.alive and not peer.hostile]

    def reachable(self, peer: Peer) -> list[PeerId]:
        """Who discovery finds for it now: everybody, or, of a crowd, the voters of the manifest and a few others."""
        found = [p.id for p in self.peers if p.alive and p is not peer and self.network.connected(p.id, peer.id)]
        if len(found) <= CROWD:
            return found
        voters = set(self.scenario.manifest.electorate)
        others = [other for other in found if other not in voters]
        return [other for other in found if other in voters] + self.network.dice.sample(others, min(FEW, len(others)))

    def introduce(self) -> None:
        """Discovery finds everybody for everybody: after a partition."""
        for peer in self.peers:
            if peer.alive:
                for other in self.reachable(peer):
                    self.clock.after(self.network.dice.uniform(0.1, 2.0), peer.found, other)

    # The course of a run.

    def run(self) -> SeedResult:
        """From the first start to the quiet end."""
        try:
            return self._run()
        except Exception as error:  # noqa: BLE001  whatever the protocol's code raises is a finding, with its seed
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(at.filename).name}:{at.lineno}"
            self.watch.accuse("no exception", f"{type(error).__name__} in {where}: {error}")
            return self._result()
        finally:
            for file in self._files:
                file.close()
            if self._folder is not None:
                self._folder.cleanup()

    def _run(self) -> SeedResult:
        for peer in self.peers:
            self.clock.at(peer.plan.starts_at, self._begin, peer)
        self.injector.arm()
        self.liveness.arm()
        watch, rounds = self.watch, self.scenario.plan.rounds
        self.clock.run(self.scenario.horizon_s, lambda: watch.best_round >= rounds or bool(watch.violations))
        if not watch.violations:
            self.injector.heal()
            self.liveness.quiet_from(self.clock.now)
            limit = self.clock.now + self.liveness.end_bound_s()
            self.clock.run(limit, lambda: self.liveness.settled or bool(watch.violations))
            if not watch.violations:
                check_end(self)
        return self._result()

    def _begin(self, peer: Peer) -> None:
        if not peer.started and not peer.gone:
            if Fault.JOIN in self.scenario.plan.faults and peer.plan.starts_at > 1:
                self.network.injected["join"] = self.network.injected.get("join", 0) + 1
            peer.start()

    def _result(self) -> SeedResult:
        tips = [p.round.chain.tip for p in self.honest() if hasattr(p, "round")]
        tip = max(tips, key=lambda tip: (tip.round, tip.id), default=None)
        messages: dict[str, list[int]] = {}
        sizes: dict[str, list[int]] = {}
        started = [p for p in self.peers if p.started]
        for found, meters in ((messages, [p.meter.count for p in started]), (sizes, [p.meter.size for p in started])):
            for kind in sorted({kind for meter in meters for kind in meter}):
                found[kind] = [meter.get(kind, 0) for meter in meters]
        return SeedResult(
            self.scenario.seed, 0 if tip is None else tip.round, len(self.watch.forks), dict(self.network.injected),
            tuple(self.watch.violations), self.clock.now, self.clock.events, "" if tip is None else tip.id.hex(),
            messages, sizes,
        )


def _quick_folder() -> str | None:
    """Memory, where the system offers it as a folder: every record is synced."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  a folder with a random name is made there


def run_seed(plan: Plan, seed: int) -> SeedResult:
    return World(plan, seed).run()


__all__ = ["SeedResult", "World", "run_seed"]
