"""What `atoll status` shows, put together from what the p2p service said last and what the trainer reported.

Pure: parts in, one JSON-ready dictionary out. The supervisor keeps the parts; the command line prints the result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MOST_ROUNDS = 10_000

_REMEDIES = {
    "port_taken": "Stop the program on that port, or choose another with --port.",
    "refused": "Check the address, or ask for a fresh invite; it is tried again by itself.",
    "timeout": "Check the address and the firewalls on the way; it is tried again by itself.",
    "unresolved": "Check the name and this machine's DNS; it is tried again by itself.",
    "no_route": "Check this machine's network and the address's IP family; it is tried again by itself.",
    "wrong_peer_id": "Ask for a fresh invite: another peer answers at that address.",
    "service_restarting": "Nothing: it starts again by itself; training goes on meanwhile.",
    "trainer_restarting": "Nothing: it starts again by itself; `atoll logs` has the cause.",
    "disk_full": "Free some space; it goes on by itself.",
    "no_quorum": "Start more of the voters, or check the network to them (`atoll peers`); it goes on by itself.",
    "no_genesis_voter": "Start one of the voters that the manifest names, or have the owner sign another run.",
    "results_gone": "Take a fresh home and join anew.",
}
_OTHER_REMEDY = "See `atoll logs`."


@dataclass
class TrainerHistory:
    """What the trainer has reported since the daemon started: the last progress, losses by round, evaluations."""

    progress: dict[str, Any] = field(default_factory=dict)
    _losses: dict[int, list[float]] = field(default_factory=dict)  # round being trained: sum, finite steps, last
    _evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)

    def take_progress(self, args: Mapping[str, Any]) -> None:
        """`args` as `service_host` sends them."""
        self.progress = dict(args)
        parent_round, loss = args.get("round"), args.get("loss")
        if not isinstance(parent_round, int) or not isinstance(loss, float) or not math.isfinite(loss):
            return
        total = self._losses.setdefault(parent_round + 1, [0.0, 0, 0.0])
        total[0], total[1], total[2] = total[0] + loss, total[1] + 1, loss
        _trim(self._losses)

    def take_evaluation(self, args: Mapping[str, Any]) -> bool:
        """Whether it was one, and a new one."""
        round_number, loss, parent = args.get("round"), args.get("loss"), args.get("parent")
        if not isinstance(round_number, int) or not isinstance(loss, float) or not isinstance(parent, bytes):
            return False
        row = {
            "round": round_number, "loss": loss if math.isfinite(loss) else None, "tokens": args.get("tokens"),
            "bytes": args.get("bytes"), "parent": parent.hex(),
        }
        fresh = self._evaluations.get(round_number) != row
        self._evaluations[round_number] = row
        _trim(self._evaluations)
        return fresh

    def losses(self) -> list[dict[str, Any]]:
        return [
            {"round": number, "loss": total / count, "last": last, "steps": count}
            for number, (total, count, last) in sorted(self._losses.items())
        ]

    def evaluations(self) -> list[dict[str, Any]]:
        return [row for _, row in sorted(self._evaluations.items())]


def assemble(
    service: Mapping[str, Any], trainer: TrainerHistory, own: Mapping[str, Any], warnings: Sequence[str]
) -> dict[str, Any]:
    """The whole of `status --json`. `own` is what the daemon knows of itself; it wins over the service's words."""
    progress = trainer.progress or service.get("trainer") or {}
    loss = progress.get("loss")
    status = {
        "state": "STARTING", "round": 0, "state_digest": None, "parent": None, "tokens": 0, "addresses": [],
        "electorate": [], "members": [], "ballot": None, "up_bytes": 0, "down_bytes": 0, "run_id": None, "reason": None,
        **{key: value for key, value in service.items() if key not in ("held", "trainer")},
        "inner_step": progress.get("inner_step", 0),
        "inner_steps": progress.get("inner_steps", 0),
        "loss": loss if isinstance(loss, float) and math.isfinite(loss) else None,
        "tokens_per_s": progress.get("tokens_per_s", 0.0),
        "skipped_steps": progress.get("skipped_steps", 0),
        "epoch": progress.get("epoch", 0),
        "notice": progress.get("notice", ""),
        "evaluations": trainer.evaluations(),
    }
    status |= own
    status["reason"] = explain(status["reason"])
    status["warnings"] = [*service.get("warnings", ()), *warnings]
    return status


def explain(reason: Mapping[str, Any] | None) -> dict[str, str] | None:
    """A reason with its remedy."""
    if not reason:
        return None
    code, message = str(reason.get("code", "error")), str(reason.get("message", ""))
    return {"code": code, "message": message, "remedy": str(reason.get("remedy") or _REMEDIES.get(code, _OTHER_REMEDY))}


def _trim(rows: dict[int, Any]) -> None:
    while len(rows) > _MOST_ROUNDS:
        del rows[min(rows)]
