"""One line for a person whenever something happened that a person would want to know. Pure: statuses in, lines out."""

import math
from collections.abc import Mapping
from typing import Any

from atoll.node.terminal import one_line

_STATES = {
    "CONNECTING": "connecting to the network",
    "SYNC": "fetching the state of the run",
    "FINISHED": "the run is finished; this node goes on serving it until you end it (Ctrl-C or `atoll down`)",
}


class Narrator:
    def __init__(self) -> None:
        self._state = ""
        self._reason = ""
        self._round: int | None = None
        self._in_run = False
        self._listening = False

    def status_lines(self, status: Mapping[str, Any]) -> list[str]:
        """What changed since the last status, rounds apart."""
        lines: list[str] = []
        state = str(status.get("state", ""))
        if state != self._state:
            self._state = state
            if state in _STATES and status.get("run_id"):
                lines.append(_STATES[state])
        addresses = status.get("addresses")
        if addresses and not self._listening:
            self._listening = True
            lines.append(f"listening on {one_line(str(addresses[0]))}")
        reason = status.get("reason")
        message = one_line(str(reason.get("message", ""))) if isinstance(reason, Mapping) else ""
        if message != self._reason:
            self._reason = message
            if message:
                lines.append(message)
        if status.get("held") and not self._in_run:
            self._in_run = True
            lines.append(f"in the run, {status.get('round', 0)} rounds done")
        return lines

    def new_round(self, status: Mapping[str, Any]) -> bool:
        """Whether a round has been certified since the last look; the first look only takes note."""
        number = status.get("round")
        if not isinstance(number, int) or not status.get("held"):
            return False
        before, self._round = self._round, number
        return before is not None and number > before


def round_line(row: Mapping[str, Any], loss: float | None) -> str:
    """One certified round."""
    contributors = row.get("contributors") or ()
    tokens = sum(int(entry.get("tokens", 0)) for entry in contributors)
    peers = "1 peer" if len(contributors) == 1 else f"{len(contributors)} peers"
    parts = [
        f"round {row.get('round')}: {peers}, {tokens:,} tokens",
        f"{float(row.get('seconds') or 0):.1f} s",
    ]
    if row.get("ballot"):
        parts.append(f"ballot {row['ballot']}")
    if loss is not None:
        parts.append(f"training loss {loss:.3f}")
    return ", ".join(parts)


def evaluation_line(args: Mapping[str, Any]) -> str:
    loss = float(args.get("loss", math.nan))
    if not math.isfinite(loss):
        return f"held-out loss after round {args.get('round')}: not finite"
    perplexity = f", perplexity {math.exp(loss):,.2f}" if loss < 50 else ""
    return f"held-out loss after round {args.get('round')}: {loss:.4f} nats per token{perplexity}"
