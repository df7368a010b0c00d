"""`atoll inspect verify`: is a training log what it says it is? Checked in `atoll.node.inspect_log`, shown here."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.node import terminal
from atoll.node.cli.parser import Parser, Subparsers, add_command, home_flag, home_of, json_flag, print_json, short
from atoll.node.errors import UsageError
from atoll.node.exit_codes import ExitCode

if TYPE_CHECKING:
    from atoll.node.inspect_log import Verdict

DESCRIPTION = f"""\
Check a whole training log again, without a daemon and without trust in whoever kept it: the signature of every vote,
record, last promise and ticket, quorums and journals, every electorate, links, tokens, and FORKs.
With --home also the states on disk against their certified digests, and the last rounds' outer steps again from the
results on disk; --deep goes back as far as the disk allows. With --log FILE only a copy of a log, and the run's
manifest beside it (`manifest`) or named with --manifest.
The exit code is {ExitCode.OK} if all holds and {ExitCode.NOT_VALID} if not. A log that ends early is not wrong.
"""
_NOTICES = 10
_NAMES = 4


def add(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "inspect", "check a run's training log again, without a daemon")
    checks = parser.add_subparsers(title="checks", metavar="CHECK", required=True, parser_class=Parser)
    verify = checks.add_parser(
        "verify", help="check a chain of certificates, offline", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    home_flag(verify)
    verify.add_argument("--log", metavar="FILE", help="a log that was copied elsewhere (default: the home's)")
    verify.add_argument("--manifest", metavar="FILE", help="its run's manifest (default: `manifest` beside it)")
    verify.add_argument("--deep", action="store_true", help="replay from the oldest state on disk, not from the newest")
    json_flag(verify)
    verify.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises AtollError for what stands in the way of checking."""
    from atoll.node.inspect_log import verify_file, verify_home

    if args.log is None and args.manifest is not None:
        raise UsageError("--manifest belongs to --log FILE: a home has its own.")
    if args.log is not None and args.deep:
        raise UsageError("--deep is about the states in a home: leave it out with --log.")
    if args.log is not None:
        verdict = verify_file(Path(args.log), Path(args.manifest) if args.manifest is not None else None)
    else:
        verdict = verify_home(home_of(args), deep=args.deep)
    if args.json:
        print_json(verdict.tree())
    else:
        _show(verdict)
    return ExitCode.OK if verdict.valid else ExitCode.NOT_VALID


def _show(verdict: "Verdict") -> None:
    for problem in verdict.problems:
        terminal.say(terminal.one_line(str(problem)))
    for notice in verdict.notices[:_NOTICES]:
        terminal.say(f"note: {terminal.one_line(str(notice))}")
    if len(verdict.notices) > _NOTICES:
        terminal.say(f"note: {len(verdict.notices) - _NOTICES} more like these; --json has them all")
    audit, tip = verdict.audit, verdict.audit.tip
    if audit.problems:
        kept = f"all before it holds, {_count(tip.round, 'round')}" if tip.round else "no round holds"
        rest = f"; {_count(audit.unchecked, 'link')} behind it not checked" if audit.unchecked else ""
        terminal.say(f"NOT VALID: {kept}{rest}.")
    elif verdict.problems:
        terminal.say(f"NOT VALID: the log holds ({_count(tip.round, 'round')}), what is on this disk does not.")
    elif not audit.links:
        terminal.say("the log is empty: no round has been certified yet.")
    else:
        terminal.say(_summary(verdict))
    states = verdict.replay
    if states is not None and (states.states or states.rounds):
        terminal.say(_of_states(states.states, states.first, states.last))


def _summary(verdict: "Verdict") -> str:
    tip, voters = verdict.audit.tip, verdict.voters
    names = f" ({', '.join(short(name) for name in voters)})" if len(voters) <= _NAMES else ""
    return (f"valid: {_count(tip.round, 'round')}, {_count(tip.forks, 'FORK')}, {_count(len(voters), 'voter')}{names}, "
            f"{tip.tokens:,} tokens\nstate  {tip.state.hex()}")


def _of_states(states: int, first: int | None, last: int | None) -> str:
    told = f"disk   {_count(states, 'state')} with the certified digest"
    if first is None or last is None:
        return f"{told}; no round was replayed"
    which = f"round {first} was" if first == last else f"rounds {first} to {last} were"
    return f"{told}; {which} replayed from the results, to the same bytes"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
