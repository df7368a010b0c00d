"""`atoll rounds`: the story of the run, from the daemon or, where none runs, from the home's log.

A line for each certified round; below it who was expected and dropped out, and who may vote from then on where that
changed. Where a FORK began a new lineage, a line says who went on and why.
"""

import argparse
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, add_command, amount, home_of, print_json, short, table
from atoll.node.errors import IpcError, NotRunningError
from atoll.node.exit_codes import ExitCode
from atoll.node.paths import Home

_WIDTH = 100
_NAMES = 3  # contributors are named up to this many, counted beyond
_LISTED = 8  # names in a sentence
_RANKS = {
    1: "voters whose quorum was gone",
    2: "contributors of the last rounds, where no voter was left",
    3: "holders of the state, where neither voter nor contributor was left",
}

Row = Mapping[str, Any]


def add(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "rounds", "show the certified rounds of the run", as_json=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    rows = _rows(home_of(args))
    if args.json:
        print_json({"rounds": rows})
    elif not rows:
        terminal.say("no round has been certified yet.")
    else:
        terminal.say("\n".join(tell(rows)))
    return ExitCode.OK


def _rows(home: Home) -> list[dict[str, Any]]:
    from atoll.node.client import Client

    try:
        return Client(home).rounds()
    except (NotRunningError, IpcError):
        run_id = home.current_run_id()
        if run_id is None:
            raise
    from atoll.p2p.run_store import read_rounds

    return read_rounds(home.run_folder(run_id))


def tell(rows: Sequence[Row]) -> Iterator[str]:
    """The lines, at most 100 columns wide. `rows` are those of `--json`, oldest first."""
    heads = ("round", "took part", "ballot", "tokens", "took", "up", "down", "state")
    cells = [
        (row["round"], _who(row), row["ballot"], _compact(sum(c["tokens"] for c in row["contributors"])),
         f"{row['seconds']:.1f} s", amount(row["bytes_up"]), amount(row["bytes_down"]), row["state_digest"][:10])
        for row in rows
    ]
    head, *lines = table(heads, cells, right=(0, 2, 3, 4, 5, 6)).split("\n")
    yield head
    before: Row | None = None
    for row, line in zip(rows, lines, strict=True):
        if row["fork"] is not None:
            yield from _wrapped(_fork(row["fork"]), "  ")
        yield line
        if row["dropped"]:
            yield from _wrapped(f"dropped out: {_dropped(row['dropped'])}", "       ")
        if before is not None and row["electorate"] != before["electorate"]:
            yield from _wrapped(_electorate(before["electorate"], row["electorate"]), "       ")
        before = row


def _who(row: Row) -> str:
    names = [short(entry["peer_id"]) for entry in row["contributors"]]
    if not names:
        return "nobody: the state stays"
    return f"{len(names)} {' '.join(names)}" if len(names) <= _NAMES else f"{len(names)} peers"


def _fork(fork: Mapping[str, Any]) -> str:
    rank = fork["rank"]
    why = _RANKS.get(rank, "peers of a rank that this program does not know")
    return f"FORK {fork['id'][:10]}: a new lineage begins. {_listed(fork['survivors'])} went on: {why} (rank {rank})."


def _dropped(dropped: Sequence[Mapping[str, str]]) -> str:
    by_phase: dict[str, list[str]] = {}
    for entry in dropped:
        by_phase.setdefault(entry["phase"], []).append(entry["peer_id"])
    return "; ".join(f"{_listed(peers)} in {phase}" for phase, peers in by_phase.items())


def _electorate(before: Sequence[str], now: Sequence[str]) -> str:
    come, gone = [p for p in now if p not in before], [p for p in before if p not in now]
    said = [f"{_listed(come)} came in"] if come else []
    said += [f"{_listed(gone)} went out"] if gone else []
    return f"voters: {len(now)} from here on{'; ' if said else ''}{', '.join(said)}"


def _listed(peers: Sequence[str]) -> str:
    names = [short(peer) for peer in peers[:_LISTED]]
    more = f" and {len(peers) - len(names)} more" if len(peers) > len(names) else ""
    return ", ".join(names) + more


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        terminal.one_line(text), _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False,
    )


def _compact(count: int) -> str:
    """A number of tokens in at most seven letters."""
    if count < 100_000:
        return f"{count:,}"
    scaled = float(count)
    for unit in ("k", "M", "G", "T"):
        scaled /= 1000
        if scaled < 1000:
            return f"{scaled:.1f} {unit}"
    return f"{scaled:.0f} T"
