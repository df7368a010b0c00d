"""`atoll rounds`: the certified rounds of the run, from the daemon or, where none runs, from the home's log."""

import argparse
from typing import Any

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, add_command, amount, home_of, print_json, table
from atoll.node.errors import IpcError, NotRunningError
from atoll.node.exit_codes import ExitCode
from atoll.node.paths import Home


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
        lines = [
            (row["round"], row["certificate"][:12], row["state_digest"][:12], row["ballot"], len(row["contributors"]),
             f"{sum(entry['tokens'] for entry in row['contributors']):,}", f"{row['seconds']:.1f} s",
             amount(row["bytes_up"]), amount(row["bytes_down"]))
            for row in rows
        ]
        heads = ("round", "certificate", "state", "ballot", "peers", "tokens", "took", "up", "down")
        terminal.say(table(heads, lines, right=(0, 3, 4, 5, 6, 7, 8)))
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
