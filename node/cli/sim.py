"""`atoll sim`: the round protocol on a simulated network, with faults. What that is: `atoll.p2p.simulation`."""

import argparse
from typing import TYPE_CHECKING, Any

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, amount, json_flag, print_json, table
from atoll.node.exit_codes import ExitCode

if TYPE_CHECKING:
    from atoll.p2p.simulation.runner import Report
    from atoll.p2p.simulation.world import SeedResult

DESCRIPTION = """\
Run the protocol's own code on a simulated network and a virtual clock, one world for each seed, and check throughout
that what DESIGN promises holds: at most one value under each parent, the same bytes at the same tip, nothing lost or
counted twice, and that rounds go on. A violation prints the command that replays it and the events before it; the exit
code is then 1. The same seed is the same run, always.
"""


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "sim", help="run the protocol on a simulated network, with faults, and check what it promises",
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--peers", **number, default=16, help="peers of each run, 1 to 1024 (default: 16)")
    parser.add_argument("--rounds", **number, default=20, help="rounds of each run (default: 20)")
    parser.add_argument("--seeds", **number, default=200, help="how many seeds (default: 200)")
    parser.add_argument("--seed", **number, default=1, help="the first seed (default: 1)")
    parser.add_argument("--faults", default="all", metavar="LIST",
                        help="faults, comma-separated: crash, restart, gone, disk-loss, partition, loss, reorder, "
                             "slow, skew, corrupt, join, leave, torn-journal, equivocate; or none, or all (default)")
    parser.add_argument("--jobs", **number, default=0, help="processes at a time (default: one for each core)")
    json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises PlanError for arguments that make no sense."""
    from atoll.p2p.simulation.plan import Plan, PlanError, parse_faults
    from atoll.p2p.simulation.runner import run as simulate

    plan = Plan(args.peers, args.rounds, parse_faults(args.faults))
    plan.check()
    if args.seeds < 1 or args.jobs < 0 or args.seed < 0:
        raise PlanError("--seeds must be at least 1, --jobs and --seed at least 0.")
    progress = _Progress(args.seeds, quiet=args.json)
    report = simulate(plan, args.seed, args.seeds, jobs=args.jobs or None, told=progress.told)
    if args.json:
        print_json(report.tree())
    else:
        _show(report)
    return ExitCode.FAILED if report.violations else ExitCode.OK


class _Progress:
    """A line now and then, so that a person sees how far it is."""

    def __init__(self, seeds: int, *, quiet: bool) -> None:
        self._seeds, self._quiet, self._done, self._wrong = seeds, quiet, 0, 0

    def told(self, result: "SeedResult") -> None:
        self._done += 1
        self._wrong += bool(result.violations)
        if not self._quiet and self._done % 25 == 0 and self._done < self._seeds:
            terminal.say(f"{self._done} of {self._seeds} seeds, {self._wrong} with a violation")


def _show(report: "Report") -> None:
    tree = report.tree()
    for violation in report.violations:
        terminal.say(f"VIOLATION of {violation.rule} at {violation.time:.3f} s: {violation.message}")
        terminal.say("\n".join(f"    {line}" for line in violation.timeline))
        terminal.say(f"  replay: {report.plan.command(violation.seed)}\n")
    faults = ", ".join(f"{name} {count}" for name, count in tree["faults_injected"].items()) or "none"
    messages, sizes = tree["messages_per_peer"], tree["bytes_per_peer"]
    rows = [
        (kind, f"{messages[kind]['mean']:,.0f}", f"{messages[kind]['max']:,}", amount(sizes[kind]["mean"]),
         amount(sizes[kind]["max"]))
        for kind in messages
    ]
    terminal.say(table(("sent by a peer", "mean", "most", "mean", "most"), rows, right=(1, 2, 3, 4)))
    terminal.say(
        f"{tree['seeds']} seeds of {report.plan.peers} peers: {tree['rounds_committed']:,} rounds committed, "
        f"{tree['forks']} forks, {len(report.violations)} violations; {tree['virtual_seconds']:,.0f} virtual seconds "
        f"in {tree['wall_seconds']:.1f}.\nfaults: {faults}."
    )
