"""`atoll logs`: the last lines of the logs of the daemon and its children, and on request what comes after them."""

import argparse
import time
from pathlib import Path

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, add_command, home_of
from atoll.node.errors import HomeError, UsageError
from atoll.node.exit_codes import ExitCode
from atoll.node.logs import Follower, tail
from atoll.protocol.settings import suggestion

_LOOK_S = 0.25


def add(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "logs", "show the logs of the daemon and its children")
    parser.add_argument("name", nargs="?", help="one log: daemon, service, rank-0, … (default: all)")
    parser.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="last N lines of each (default: 20)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines until Ctrl-C")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    home = home_of(args)
    if args.lines < 0:
        raise UsageError(f"-n is {args.lines}, it counts lines: 0 or more.")
    paths = {path.stem: path for path in sorted(home.logs.glob("*.log"))} if home.logs.is_dir() else {}
    if not paths:
        raise HomeError(f"there are no logs in {home.logs}: no daemon has run on this home yet.")
    if args.name is not None:
        if args.name not in paths:
            raise UsageError(f"no log is called `{args.name[:60]}`{suggestion(args.name, paths)}")
        paths = {args.name: paths[args.name]}
    follower = Follower(paths.values())
    for path in paths.values():
        for line in tail(path, args.lines):
            _show(path, line, alone=len(paths) == 1)
    while args.follow:
        for path, line in follower.new_lines():
            _show(path, line, alone=len(paths) == 1)
        time.sleep(_LOOK_S)  # files give no portable event; `tail -f` looks again and again too
    return ExitCode.OK


def _show(path: Path, line: str, *, alone: bool) -> None:
    text = terminal.one_line(line) if "\x1b" in line else line
    terminal.say(text if alone else f"{path.stem:<10} {text}")
