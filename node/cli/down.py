"""`atoll down`: end the daemon of a home, and wait until it has ended."""

import argparse

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, add_command, home_of
from atoll.node.exit_codes import ExitCode


def add(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "down", "end the daemon: it checkpoints, says goodbye, and goes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from atoll.node.client import Client

    Client(home_of(args)).down()
    terminal.say("the daemon has ended.")
    return ExitCode.OK
