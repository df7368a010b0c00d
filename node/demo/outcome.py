"""What came out of a demo: the figures, whether they are what they must be, as JSON and as a page for people.

Called by the show with the last snapshots; knows no processes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atoll.node.demo.cost import ddp_bytes_per_peer, reduction
from atoll.node.demo.plan import DemoPlan
from atoll.node.demo.snapshot import Snapshot
from atoll.node.demo.text import bytes_text, short, sparkline

_SHOWN_DIGEST = 32  # of 64 hex digits: enough to compare by eye, and it fits 80 columns


@dataclass(frozen=True)
class Outcome:
    plan: DemoPlan
    numel: int                       # elements of the outer vector
    peers: Sequence[Snapshot]        # the last that was seen of each
    evaluations: Mapping[int, float]  # round -> held-out loss, nats per token
    seconds: float
    curve: Sequence[float] = ()      # training loss by round
    interrupted: bool = False
    faults: Sequence[str] = ()       # what went wrong by itself, a sentence each

    @property
    def survivors(self) -> list[Snapshot]:
        return [peer for peer in self.peers if peer.alive]

    @property
    def rounds(self) -> int:
        """Certified rounds, as the survivor that is furthest has them."""
        return max((peer.round for peer in self.survivors), default=0)

    @property
    def killed(self) -> int:
        return sum(1 for peer in self.peers if peer.state == "KILLED")

    @property
    def initial_loss(self) -> float | None:
        return self.evaluations.get(0)

    @property
    def final_loss(self) -> float | None:
        """Of the last outer state that was evaluated; of a run that has ended, the final one's or nothing."""
        later = [number for number in self.evaluations if number]
        last = self.plan.rounds or max(later, default=0)
        if self.interrupted:
            last = max(later, default=0)
        return self.evaluations.get(last) if last else None

    @property
    def digests(self) -> dict[str, str]:
        return {peer.peer_id: peer.state_digest for peer in self.survivors if peer.state_digest}

    @property
    def bytes_sent(self) -> int:
        """By all peers that live at the end."""
        return sum(peer.up_bytes for peer in self.survivors)

    @property
    def reduction_vs_ddp(self) -> float | None:
        sent = self.bytes_sent / max(1, len(self.survivors))
        return reduction(self.plan.peers, self.numel, self.rounds * self.plan.inner_steps, sent)

    def complaints(self) -> list[str]:
        """Why this is not a success; empty if every survivor did all rounds, in one state, and the loss fell."""
        found = list(self.faults)
        late = [peer for peer in self.survivors if not peer.completed(self.plan.rounds)]
        if not self.survivors:
            found.append("no peer lives at the end.")
        found += [f"peer {peer.index} has done {peer.round} of {self.plan.rounds} rounds." for peer in late]
        if len(set(self.digests.values())) > 1:
            found.append(f"the peers ended in {len(set(self.digests.values()))} different states.")
        if self.killed < self.plan.kill:
            found.append(f"{self.killed} of {self.plan.kill} peers were killed: no exchange was seen in time.")
        if self.initial_loss is None or self.final_loss is None:
            found.append("the held-out loss was not measured at both ends of the run.")
        elif self.final_loss >= self.initial_loss:
            found.append(f"the held-out loss did not fall: from {self.initial_loss:.4f} to {self.final_loss:.4f}.")
        return found

    def json(self) -> dict[str, Any]:
        """The object that `atoll demo --json` prints."""
        ratio = self.reduction_vs_ddp
        return {
            "peers": self.plan.peers,
            "rounds": self.rounds,
            "killed": self.killed,
            "initial_loss": self.initial_loss,
            "final_loss": self.final_loss,
            "tokens": max((peer.tokens for peer in self.survivors), default=0),
            "bytes_sent": self.bytes_sent,
            "reduction_vs_ddp": None if ratio is None else round(ratio, 2),
            "state_digests": self.digests,
            "seconds": round(self.seconds, 2),
        }

    def page(self, *, unicode: bool = True) -> RenderableType:
        """The summary for people."""
        lines = Table.grid(padding=(0, 2))
        for title, text in self._lines(unicode=unicode):
            lines.add_row(Text(title, style="bold"), Text(text))
        return Group(Text(""), lines, self._states())

    def _lines(self, *, unicode: bool) -> list[tuple[str, str]]:
        arrow = "→" if unicode else "->"
        killed = f", {self.killed} killed" if self.killed else ""
        at_end = f"{len(self.survivors)} of {self.plan.peers} peers at the end{killed}"
        lines = [("rounds", f"{self.rounds} certified in {self.seconds:.0f} s, {at_end}")]
        if self.initial_loss is not None and self.final_loss is not None:
            before, after = self.initial_loss, self.final_loss
            lines += [
                ("held-out loss", f"{before:.3f} {arrow} {after:.3f} nats per token"),
                ("perplexity", f"{math.exp(min(before, 700)):,.1f} {arrow} {math.exp(min(after, 700)):,.1f}"),
            ]
        if self.curve:
            ends = f"{self.curve[0]:.2f} {arrow} {self.curve[-1]:.2f}"
            line = sparkline(self.curve, unicode=unicode)
            lines.append(("training loss", f"{line}  {ends}, at the end of each round"))
        lines.append(("tokens", f"{max((peer.tokens for peer in self.survivors), default=0):,}"))
        ratio = self.reduction_vs_ddp
        if ratio is not None:
            sent = self.bytes_sent / len(self.survivors)
            ddp = ddp_bytes_per_peer(self.plan.peers, self.numel, self.rounds * self.plan.inner_steps)
            lines += [
                ("sent per peer", bytes_text(sent)),
                ("", f"{ratio:.0f} times less than averaging gradients at every step ({bytes_text(ddp)})"),
            ]
        return lines

    def _states(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("peer", "", "state digest", "sent", "received"):
            table.add_column(title, no_wrap=True, justify="right" if title in ("sent", "received") else "left")
        for peer in self.peers:
            digest = peer.state_digest[:_SHOWN_DIGEST] if peer.alive else peer.state.lower()
            sent, received = bytes_text(peer.up_bytes), bytes_text(peer.down_bytes)
            table.add_row(str(peer.index), short(peer.peer_id), digest, sent, received)
        return table
