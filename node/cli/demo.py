"""`atoll demo`: arguments, where the view goes, and the exit code. What a demo does is in `atoll.node.demo`."""

import argparse
import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, json_flag, print_json
from atoll.node.exit_codes import ExitCode

if TYPE_CHECKING:
    from atoll.node.demo.outcome import Outcome
    from atoll.node.demo.plan import DemoPlan

DESCRIPTION = """\
Start a run on this machine: N peers, each an ordinary daemon with its own key, port and trainer, train a small model
on real text, exchange compressed pseudo-gradients and agree on every step. Ends with the loss on held-out text before
and after, and each peer's state digest. The exit code is 0 only if every surviving peer did all rounds, all ended in
the same state, and the held-out loss fell.
"""


def add(subparsers: "Subparsers") -> None:
    """Add the command to `atoll`'s."""
    parser = subparsers.add_parser(
        "demo", help="train a small model on several peers on this machine", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--peers", **number, default=4, help="how many peers, 1 to 64 (default: 4)")
    parser.add_argument("--rounds", **number, default=8, help="rounds until the end; 0: run until Ctrl-C (default: 8)")
    parser.add_argument("--inner-steps", **number, default=20, help="inner steps of a round (default: 20)")
    parser.add_argument("--kill", **number, default=0, help="kill N peers while they exchange, the ballot's leader too")
    parser.add_argument("--ranks", **number, default=1, help="training processes of each peer (default: 1)")
    parser.add_argument("--data", nargs="+", default=[], metavar="PATH",
                        help="text, JSONL or parquet files or folders (default: the standard library's source)")
    parser.add_argument("--home", metavar="DIR", default=argparse.SUPPRESS,
                        help="keep the homes, as DIR/peer-1 … DIR/peer-N (default: temporary)")
    json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Play the demo. Raises AtollError for arguments and data that cannot work, before anything is started."""
    from atoll.node.demo.plan import DemoPlan

    home = getattr(args, "home", None)
    plan = DemoPlan(
        peers=args.peers, rounds=args.rounds, inner_steps=args.inner_steps, kill=args.kill, ranks=args.ranks,
        data=tuple(Path(os.path.abspath(os.path.expanduser(path))) for path in args.data),  # noqa: PTH100, PTH111  links stay
        home=Path(os.path.abspath(os.path.expanduser(home))) if home else None,  # noqa: PTH100, PTH111
    )
    plan.check()
    _check_data(plan)
    return _play(plan, as_json=args.json)


def _check_data(plan: "DemoPlan") -> None:
    """Refuse a corpus that cannot be trained on now, rather than in every peer later. Raises DataError."""
    if plan.data:
        from atoll.trainer.data import check_corpus

        check_corpus(plan.data)


def _play(plan: "DemoPlan", *, as_json: bool) -> int:
    from rich.console import Console

    from atoll.node.demo.show import Show
    from atoll.node.demo.view import open_view
    from atoll.node.demo.watch import ask_status

    console = Console(stderr=as_json)
    outcome = asyncio.run(Show(plan, open_view(console), ask_status).run())
    complaints = outcome.complaints()
    if as_json:
        print_json(outcome.json())
    elif outcome.peers:
        console.print(outcome.page(unicode=console.encoding.startswith("utf")))
    return _verdict(outcome, complaints)


def _verdict(outcome: "Outcome", complaints: list[str]) -> int:
    if outcome.interrupted:
        terminal.complain("atoll: interrupted; every peer of the demo was stopped.")
        return ExitCode.INTERRUPTED
    for complaint in complaints:
        terminal.complain(f"atoll: {terminal.one_line(complaint)}")
    return ExitCode.FAILED if complaints else ExitCode.OK
