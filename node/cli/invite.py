"""`atoll invite`: the word with which others join the run, and nothing else."""

import argparse

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, add_command, home_of
from atoll.node.exit_codes import ExitCode


def add(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "invite", "print the word with which others join the run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from atoll.node.client import Client

    terminal.say(Client(home_of(args)).invite())
    return ExitCode.OK
