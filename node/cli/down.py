"""`atoll down`: end the daemon of a home, and wait until it has ended."""

import argparse

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, home_flag, home_of
from atoll.node.exit_codes import ExitCode


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("down", help="end the daemon", description="End the daemon: it checkpoints, says goodbye, and goes.")
    home_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from atoll.node.client import Client

    Client(home_of(args)).down()
    terminal.say("the daemon has ended.")
    return ExitCode.OK
