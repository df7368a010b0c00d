"""What all command modules share: a parser whose errors are one sentence with a suggestion, and the common flags."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from atoll.node import terminal
from atoll.node.exit_codes import ExitCode
from atoll.node.paths import Home, resolve_home
from atoll.protocol.settings import suggestion

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction["Parser"]  # argparse has no public name for it
else:
    Subparsers = argparse._SubParsersAction


class Parser(argparse.ArgumentParser):
    """Errors name the flag, the nearest known one, and end with exit code 2."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Unknown flags are refused by the parser that met them: it knows the right ones."""
        found, extra = super().parse_known_args(args, namespace)
        if extra:
            word = extra[0].split("=")[0]
            if not word.startswith("-"):
                self.error(f"`{word[:60]}` is one word too many")
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            self.error(f"unknown flag `{word[:60]}`{suggestion(word, flags)}")
        return found, extra

    def error(self, message: str) -> NoReturn:
        sentence = terminal.one_line(message).rstrip(".")
        stop = "" if sentence.endswith("?") else "."
        terminal.complain(f"{self.prog}: {sentence}{stop} See `{self.prog} --help`.")
        raise SystemExit(ExitCode.USAGE)


def add_command(subparsers: Subparsers, name: str, summary: str, *, as_json: bool = False) -> Parser:
    """A command's parser with the flags that most commands have."""
    parser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    home_flag(parser)
    if as_json:
        json_flag(parser)
    return parser


def json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def home_flag(parser: argparse.ArgumentParser) -> None:
    """`--home`, before or behind the command."""
    parser.add_argument("--home", metavar="FOLDER", default=argparse.SUPPRESS,
                        help="the node's files (default: $ATOLL_HOME, else ~/.local/share/atoll)")


def home_of(args: argparse.Namespace) -> Home:
    """The home that the flags name. Raises HomeError where nothing names one."""
    return resolve_home(getattr(args, "home", None))


def print_json(tree: Mapping[str, Any]) -> None:
    terminal.say(json.dumps(tree))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Plain aligned columns; those in `right` are numbers."""
    cells = [list(heads), *[[terminal.one_line(str(cell)) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def amount(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def short(peer: str) -> str:
    """A PeerID's last letters: the first ones are the same for everybody."""
    return f"…{peer[-8:]}" if len(peer) > 12 else peer
