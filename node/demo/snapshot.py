"""One peer as the demo sees it at one moment: its last status, read defensively, and whether it answers.

The daemon may be of another version or may just be starting, so every key may be missing. Called by the watch, the
view, the killing and the summary; knows no sockets.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXCHANGING = ("EXCHANGE", "VOTED")


@dataclass(frozen=True)
class Snapshot:
    index: int                 # 1 … peers
    peer_id: str
    state: str = "STARTING"    # the daemon's state; GONE where it does not answer, KILLED where the demo killed it
    reason: str = ""
    round: int = 0             # certified rounds
    inner_step: int = 0
    inner_steps: int = 0
    loss: float | None = None
    tokens_per_s: float = 0.0
    tokens: int = 0            # certified tokens of the whole run
    up_bytes: int = 0
    down_bytes: int = 0
    state_digest: str = ""
    leader: str = ""           # PeerID of the current ballot's leader
    has_addresses: bool = False  # its network is open
    warnings: tuple[str, ...] = ()
    evaluations: Mapping[int, float] = field(default_factory=dict)  # round -> held-out loss, nats per token

    @property
    def alive(self) -> bool:
        return self.state not in ("GONE", "KILLED")

    def completed(self, rounds: int) -> bool:
        """The outer state in this peer's memory is that of the run's last round."""
        return self.alive and self.round >= rounds > 0 and bool(self.state_digest)


def read_snapshot(index: int, peer_id: str, status: Mapping[str, Any]) -> Snapshot:
    """The snapshot behind a daemon's `status`."""
    reason = status.get("reason")
    if isinstance(reason, Mapping):
        reason = reason.get("message")
    warnings = status.get("warnings")
    return Snapshot(
        index=index,
        peer_id=peer_id,
        state=_text(status.get("state")) or "STARTING",
        reason=_text(reason),
        round=_count(status.get("round")),
        inner_step=_count(status.get("inner_step")),
        inner_steps=_count(status.get("inner_steps")),
        loss=_number(status.get("loss")),
        tokens_per_s=_number(status.get("tokens_per_s")) or 0.0,
        tokens=_count(status.get("tokens")),
        up_bytes=_count(status.get("up_bytes")),
        down_bytes=_count(status.get("down_bytes")),
        state_digest=_text(status.get("state_digest")),
        leader=_text(status.get("leader")),
        has_addresses=bool(status.get("addresses")),
        warnings=tuple(_warning(entry) for entry in warnings) if isinstance(warnings, (list, tuple)) else (),
        evaluations=_evaluations(status.get("evaluations")),
    )


def _evaluations(entries: Any) -> dict[int, float]:
    found: dict[int, float] = {}
    for entry in entries if isinstance(entries, (list, tuple)) else ():
        loss = _number(entry.get("loss")) if isinstance(entry, Mapping) else None
        if loss is not None:
            found[_count(entry.get("round"))] = loss
    return found


def _warning(entry: Any) -> str:
    return _text(entry.get("message")) if isinstance(entry, Mapping) else _text(entry)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
