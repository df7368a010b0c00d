"""What a person sees while the demo runs: a live table where the terminal can redraw, else one plain line per event.

Knows snapshots and nothing behind them. Called by the show a few times a second.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atoll.node.demo.snapshot import Snapshot
from atoll.node.demo.text import bytes_text, short, sparkline

_STATE_STYLES = {
    "TRAIN": "green", "EXCHANGE": "cyan", "VOTED": "cyan", "APPLY": "cyan", "FINISHED": "bold green",
    "FAILED": "bold red", "GONE": "red", "KILLED": "bold red",
}

_MOST_WARNINGS = 4


@dataclass(frozen=True)
class Frame:
    """All that a view shows at one moment."""

    peers: Sequence[Snapshot]
    rounds: int                # 0: without an end
    seconds: float
    curve: Sequence[float]     # training loss by round

    @property
    def round(self) -> int:
        """Certified rounds, as the peer that is furthest has them."""
        return max((peer.round for peer in self.peers), default=0)


class View(Protocol):
    def update(self, frame: Frame) -> None: ...
    def note(self, text: str) -> None:
        """One sentence worth keeping: it stays on the screen."""
        ...
    def close(self) -> None: ...


def open_view(console: Console) -> View:
    """A live view on a terminal that can redraw, plain lines elsewhere."""
    live = console.is_terminal and not console.is_dumb_terminal and os.environ.get("TERM", "") not in ("", "dumb")
    return LiveView(console) if live else PlainView(console)


class LiveView:
    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="visible")
        self._live.start()

    def update(self, frame: Frame) -> None:
        self._live.update(render(frame), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()


class PlainView:
    """One line when a round is certified or a peer comes or goes; nothing is ever redrawn."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._round = 0
        self._states: dict[int, str] = {}
        self._since = time.monotonic()

    def update(self, frame: Frame) -> None:
        for peer in frame.peers:
            self._peer(peer)
        if frame.round > self._round:
            self._round = frame.round
            now, members = time.monotonic(), sum(1 for peer in frame.peers if peer.alive)
            total = f"/{frame.rounds}" if frame.rounds else ""
            loss = f", training loss {frame.curve[-1]:.3f}" if frame.curve else ""
            took, self._since = now - self._since, now
            self.note(f"round {self._round}{total} certified after {took:.1f} s, {members} peers{loss}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to put back: every line stands."""

    def _peer(self, peer: Snapshot) -> None:
        """Beginnings and ends only: the states of a round come and go several times a minute."""
        kind = peer.state if peer.state in ("FINISHED", "FAILED", "GONE", "KILLED", "STARTING") else "running"
        before, self._states[peer.index] = self._states.get(peer.index, "STARTING"), kind
        if kind != before:
            because = f": {peer.reason}" if peer.reason and kind in ("FAILED", "GONE") else ""
            self.note(f"peer {peer.index} ({short(peer.peer_id)}) is {kind.lower()}{because}")


def render(frame: Frame) -> RenderableType:
    """The table of peers, the bar of rounds and the loss so far."""
    table = Table(box=None, pad_edge=False, expand=False, header_style="bold")
    for title, side in (("peer", "left"), ("", "left"), ("state", "left"), ("round", "right"), ("inner step", "left"),
                        ("", "right"), ("loss", "right"), ("tokens/s", "right"), ("up", "right"), ("down", "right")):
        table.add_column(title, justify="right" if side == "right" else "left", no_wrap=True)
    for peer in frame.peers:
        table.add_row(*_row(peer, frame.rounds))
    return Group(table, _progress(frame), *_warnings(frame))


def _row(peer: Snapshot, rounds: int) -> tuple[RenderableType, ...]:
    total = f"/{rounds}" if rounds else ""
    state = Text(peer.state, style=_STATE_STYLES.get(peer.state, "dim"))
    if not peer.alive:
        return f"{peer.index}", short(peer.peer_id), state, f"{peer.round}{total}", "", "", "", "", "", ""
    bar = ProgressBar(total=max(1, peer.inner_steps), completed=peer.inner_step, width=20)
    return (
        f"{peer.index}", short(peer.peer_id), state, f"{peer.round}{total}", bar,
        f"{peer.inner_step}/{peer.inner_steps}" if peer.inner_steps else "",
        f"{peer.loss:.3f}" if peer.loss is not None else "",
        f"{peer.tokens_per_s:,.0f}" if peer.tokens_per_s else "",
        bytes_text(peer.up_bytes), bytes_text(peer.down_bytes),
    )


def _progress(frame: Frame) -> RenderableType:
    line = Table.grid(padding=(0, 2))
    loss = f"training loss {frame.curve[-1]:.3f}" if frame.curve else ""
    if frame.rounds:
        line.add_row("rounds", ProgressBar(total=frame.rounds, completed=frame.round, width=30),
                     f"{frame.round}/{frame.rounds}", f"{frame.seconds:.0f} s", loss, sparkline(frame.curve))
    else:
        line.add_row("rounds", f"{frame.round}", f"{frame.seconds:.0f} s", loss, sparkline(frame.curve),
                     "Ctrl-C ends it")
    return line


def _warnings(frame: Frame) -> list[RenderableType]:
    """What is amiss, each thing once and on one line, with the peers that say so."""
    said: dict[str, list[int]] = {}
    for peer in frame.peers:
        for text in (peer.reason, *peer.warnings) if peer.alive else ():
            if text:
                said.setdefault(text, []).append(peer.index)
    lines = [f"peer {', '.join(map(str, peers))}: {text}" for text, peers in said.items()]
    return [Text(line, style="yellow", no_wrap=True, overflow="ellipsis") for line in lines[:_MOST_WARNINGS]]
