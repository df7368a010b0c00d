"""The `atoll` command: finds the subcommand's module, loads that one alone, and turns every error into one sentence.

A command module has `add(subparsers) -> None`, which adds its parser and sets `run`, and `run(args) -> int`, which does
the work and returns the exit code. Nothing heavier than argparse is imported before the command is known.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from atoll.node import exit_codes, terminal
from atoll.node.cli.parser import Parser, Subparsers, home_flag
from atoll.node.exit_codes import ExitCode
from atoll.protocol.errors import AtollError
from atoll.protocol.settings import suggestion

COMMANDS = {
    "up": "join or resume a run, or serve as bootstrap node, in the foreground",
    "down": "end the daemon of a home",
    "status": "what the daemon is doing",
    "peers": "the other peers of the run",
    "rounds": "the certified rounds of the run",
    "inspect": "check a run's training log again, without a daemon",
    "id": "print this node's PeerID",
    "paths": "where the files of a home lie",
    "logs": "show the logs of the daemon and its children",
    "invite": "print the word with which others join the run",
    "run": "make a run: `run new` writes a draft, `run sign` makes it final, `run admit` lets a peer vote",
    "sim": "run the protocol on a simulated network, with faults, and check what it promises",
    "demo": "train a small model on several peers on this machine",
}
DESCRIPTION = "Train one language model together over the internet, with no master, no chain and no operator."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code. Never raises for what a person did."""
    terminal.prepare()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _main(words)
    except SystemExit as end:  # argparse, after --help or a usage error
        return end.code if isinstance(end.code, int) else ExitCode.USAGE
    except KeyboardInterrupt:
        terminal.complain("atoll: interrupted.")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return ExitCode.OK  # the reader has seen enough
    except Exception as raised:  # noqa: BLE001  the last resort: a person gets a sentence, never a traceback
        return _explain(raised)
    finally:
        terminal.finish()


def _main(words: list[str]) -> int:
    name = _command(words)
    args = build_parser(name).parse_args(words)
    if not hasattr(args, "run"):
        build_parser(None).print_help(sys.stdout)
        return ExitCode.OK if not words else ExitCode.USAGE
    return int(args.run(args))


def build_parser(loaded: str | None) -> Parser:
    """The parser; only the command `loaded` has its flags, the others are names with a line of help."""
    parser = Parser(
        prog="atoll", description=DESCRIPTION, epilog=f"exit codes:\n{exit_codes.table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=_version() if loaded is None else "")
    home_flag(parser)
    subparsers: Subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for name, help_line in COMMANDS.items():
        if name == loaded:
            importlib.import_module(f"atoll.node.cli.{name}").add(subparsers)
        else:
            subparsers.add_parser(name, help=help_line)
    return parser


def _command(words: Sequence[str]) -> str | None:
    """The subcommand among the words, None if there is none. Raises SystemExit for one that does not exist."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word == "--home":
            skip = True
        elif not word.startswith("-"):
            if word in COMMANDS:
                return word
            terminal.complain(f"atoll: unknown command `{terminal.one_line(word)[:60]}`{suggestion(word, COMMANDS)}")
            raise SystemExit(ExitCode.USAGE)
    return None


def _explain(raised: Exception) -> int:
    """One sentence on standard error, and the exit code of the table."""
    error = raised
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, AtollError):
        terminal.complain(f"atoll: {terminal.one_line(str(error))}")
        return exit_codes.of(error)
    if os.environ.get("ATOLL_TRACEBACK"):
        raise raised
    terminal.complain(
        f"atoll: this is a defect of atoll ({type(error).__name__}: {terminal.one_line(str(error))[:300]}); "
        "run it again with ATOLL_TRACEBACK=1 and report what it prints."
    )
    return ExitCode.INTERNAL


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"atoll {version('atoll')}"
    except PackageNotFoundError:
        return "atoll (not installed)"
