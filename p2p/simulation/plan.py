"""What is simulated: how many peers and rounds, which faults, and what a seed makes of it.

A `Plan` comes from the command line and is the same for every seed; a `Scenario` is what one seed draws from it: the
manifest, who votes at genesis, who comes later, how fast everybody is. Knows no protocol state. `world` reads it.
"""

import dataclasses
import enum
import random
from dataclasses import dataclass

import numpy as np

from atoll.protocol.codecs.registry import CODECS
from atoll.protocol.digest import array_digest, state_digest
from atoll.protocol.errors import AtollError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import (
    MAX_CONTRIBUTORS,
    MAX_ELECTORATE,
    Draft,
    ExchangeSettings,
    GenesisSettings,
    Manifest,
    OuterSettings,
    RunSettings,
)
from atoll.protocol.standing import sign_ticket

NUMEL, PART_ELEMENTS = 112, 32  # four parts, the last one shorter
INNER_STEPS = 8
TOKENS_PER_STEP = 13
USUAL_TOKENS = 6 * TOKENS_PER_STEP  # a peer's share of a round's token target, where there is one
STEP_S = 1.0
FEW_PEERS = 32
MAX_SIMULATED = MAX_CONTRIBUTORS


class Fault(enum.StrEnum):
    CRASH = "crash"  # killed, stays down for a while, comes back with its disk
    RESTART = "restart"  # everybody, or many, at once
    GONE = "gone"  # dies for good
    DISK_LOSS = "disk-loss"  # comes back with its key and an empty disk
    PARTITION = "partition"  # two or three groups that cannot hear each other
    LOSS = "loss"  # messages and bytes are lost, streams break
    REORDER = "reorder"  # messages overtake each other
    SLOW = "slow"  # trains or uploads several times slower
    SKEW = "skew"  # monotonic clocks run fast or slow
    CORRUPT = "corrupt"  # a byte of a message or blob flips on its way
    JOIN = "join"  # peers that start later
    LEAVE = "leave"  # peers that say goodbye, and sometimes come back
    TORN_JOURNAL = "torn-journal"  # dies while it writes its journal; rarely the journal is damaged
    EQUIVOCATE = "equivocate"  # signs two votes in one ballot


class PlanError(AtollError):
    code = "usage"


def parse_faults(text: str) -> frozenset[Fault]:
    """The faults that `text` names, comma-separated; `all` and `none` are words too. Raises PlanError."""
    if text == "all":
        return frozenset(Fault)
    if text == "none":
        return frozenset()
    found = set()
    for word in text.split(","):
        try:
            found.add(Fault(word.strip()))
        except ValueError:
            known = ", ".join(Fault)
            raise PlanError(f"`{word.strip()[:40]}` is no fault; known are {known}, none and all.") from None
    return frozenset(found)


@dataclass(frozen=True)
class Plan:
    peers: int = 16
    rounds: int = 20
    faults: frozenset[Fault] = frozenset(Fault)

    def check(self) -> None:
        """Raises PlanError."""
        if not 1 <= self.peers <= MAX_SIMULATED:
            raise PlanError(f"--peers {self.peers}: it must be 1 to {MAX_SIMULATED}.")
        if not 1 <= self.rounds <= 10_000:
            raise PlanError(f"--rounds {self.rounds}: it must be 1 to 10,000.")

    def command(self, seed: int) -> str:
        """The command line that replays `seed`."""
        names = [fault for fault in Fault if fault in self.faults]
        faults = "all" if len(names) == len(Fault) else ",".join(names) or "none"
        return f"atoll sim --seed {seed} --seeds 1 --peers {self.peers} --rounds {self.rounds} --faults {faults}"


@dataclass(frozen=True)
class PeerPlan:
    """What is fixed for one peer of a scenario."""

    identity: Identity
    starts_at: float
    step_s: float  # seconds of one inner step
    upload_bps: float  # bytes per second
    clock_offset: float
    clock_rate: float  # local seconds per true second
    place: tuple[float, float]  # latency between two peers grows with their distance
    trains: bool
    ticket: bytes  # the owner's, or none


@dataclass(frozen=True)
class Scenario:
    plan: Plan
    seed: int
    manifest: Manifest
    genesis: np.ndarray  # (NUMEL,) float32
    peers: tuple[PeerPlan, ...]
    sample: int  # one honest message in so many goes over the wire as bytes

    @property
    def settings(self) -> ExchangeSettings:
        return self.manifest.draft.exchange

    @property
    def round_s(self) -> float:
        """A usual round: the inner steps and a few exchanges."""
        return max(INNER_STEPS * STEP_S, self.settings.min_round_s, self.settings.round_s) + 2.0

    @property
    def horizon_s(self) -> float:
        """When faults end: a few rounds before the last one."""
        return self.round_s * max(2.0, self.plan.rounds - 3) * 1.1


def draw(plan: Plan, seed: int) -> Scenario:
    """What `seed` makes of `plan`; the same on every machine."""
    dice = random.Random(f"atoll scenario {seed}")
    identities = [Identity(_key(seed, index)) for index in range(plan.peers)]
    voters = _voters(plan, dice)
    draft = Draft(
        run=RunSettings(
            name=f"simulation {seed}", owner=peer_name(identities[0].peer_id), rounds=plan.rounds,
            electorate=tuple(peer_name(identity.peer_id) for identity in identities[:voters]),
        ),
        outer=OuterSettings(learning_rate=0.7, momentum=0.9) if dice.random() < 0.8 else OuterSettings(),
        exchange=_exchange(plan, dice),
    )
    rarely = random.Random(f"atoll scenario, rarely {seed}")
    draft = dataclasses.replace(draft, exchange=_rare_settings(plan, rarely, draft.exchange))
    genesis = np.random.default_rng(seed).standard_normal(NUMEL).astype(np.float32)
    manifest = Manifest.sign(draft, _genesis(genesis, draft), identities[0])
    tickets = rarely.random() < 0.25
    peers = tuple(_peer(plan, dice, identity, index, voters) for index, identity in enumerate(identities))
    if tickets:
        peers = tuple(
            dataclasses.replace(peer, ticket=sign_ticket(identities[0], manifest.run_id, peer.identity.peer_id))
            if index >= voters and rarely.random() < 0.5 else peer for index, peer in enumerate(peers)
        )
    few = plan.peers <= FEW_PEERS
    return Scenario(plan, seed, manifest, genesis, peers, sample=64 if few else 4096)


def _key(seed: int, index: int) -> bytes:
    return b"atoll simulation" + seed.to_bytes(8, "little", signed=True) + index.to_bytes(8, "little")


def _voters(plan: Plan, dice: random.Random) -> int:
    most = min(plan.peers, MAX_ELECTORATE)
    if plan.peers > FEW_PEERS or dice.random() < 0.3:
        return most
    return dice.randint(1, min(most, 7))


def _exchange(plan: Plan, dice: random.Random) -> ExchangeSettings:
    crowd = max(1.0, plan.peers / 16)  # heartbeats cost the square of the number of peers
    codecs = sorted(CODECS)
    feedback = [name for name in codecs if getattr(CODECS[name], "error_feedback", False)]
    plain = [name for name in codecs if name not in feedback]
    contribution = dice.choice(feedback if feedback and dice.random() < 0.5 else plain)
    return dataclasses.replace(
        ExchangeSettings(),
        contribution_codec=contribution, gather_codec=dice.choice(("fp32", "fp16", "int8")),
        part_elements=PART_ELEMENTS, weights=dice.choice(("tokens", "tokens", "equal")), token_unit=7,
        grace_s=6.0, min_round_s=6.0, ballot_timeout_s=4.0, heartbeat_s=3.5 * crowd, gone_after_s=8.0 * crowd,
        round_s=dice.choice((0.0, 9.0)), admit_after=dice.choice((1, 2, 3)),
    )


def _rare_settings(plan: Plan, rarely: random.Random, usual: ExchangeSettings) -> ExchangeSettings:
    """What only some seeds have: a token target, another cap of the residual."""
    cap = rarely.choice((1.0, 1.0, 0.5, 4.0))
    target = rarely.choice((0, 0, 0, plan.peers * USUAL_TOKENS))
    return dataclasses.replace(usual, residual_cap=cap, round_tokens=target)


def _genesis(params: np.ndarray, draft: Draft) -> GenesisSettings:
    layout = Layout(params.size, draft.exchange.part_elements)
    vectors = [params] if draft.outer.momentum == 0 else [params, np.zeros_like(params)]
    chunks = [array_digest(vector[bounds]) for vector in vectors for bounds in layout]
    return GenesisSettings(params.size, state_digest(0, 0, chunks))


def _peer(plan: Plan, dice: random.Random, identity: Identity, index: int, voters: int) -> PeerPlan:
    later = Fault.JOIN in plan.faults and index >= voters and dice.random() < 0.5
    starts_at = dice.uniform(5.0, 12.0 * max(2, plan.rounds // 2)) if later else dice.uniform(0.0, 1.0)
    slow = Fault.SLOW in plan.faults
    factor = dice.uniform(3, 20) if slow and dice.random() < 0.1 else dice.uniform(0.9, 1.2)
    upload = dice.uniform(2e5, 2e6) * (1 if not slow or dice.random() < 0.9 else 1 / dice.uniform(3, 20))
    skewed = Fault.SKEW in plan.faults
    return PeerPlan(
        identity, starts_at, STEP_S * factor, upload, dice.uniform(0, 1e6) if skewed else 0.0,
        dice.uniform(0.8, 1.2) if skewed else 1.0, (dice.random(), dice.random()),
        trains=index == 0 or plan.peers < 4 or dice.random() < 0.95, ticket=b"",
    )
