"""`atoll status`: what the daemon is doing; where none runs, how far the home's run had come and how it ended."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, add_command, amount, home_of, print_json
from atoll.node.errors import NotRunningError
from atoll.node.exit_codes import ExitCode
from atoll.node.paths import Home


def add(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "status", "tell what the daemon is doing", as_json=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from atoll.node.client import Client

    home = home_of(args)
    try:
        status = Client(home).status()
    except NotRunningError as error:
        raise NotRunningError(f"{error}{_last_words(home)}") from error
    if args.json:
        print_json(status)
    else:
        terminal.say(page(status))
    return ExitCode.OK


def page(status: Mapping[str, Any]) -> str:
    """The status for people: one fact per line."""
    reason, loss = status.get("reason"), status.get("loss")
    evaluations = status.get("evaluations") or [{}]
    digest, run_id = status.get("state_digest"), status.get("run_id")
    rows = [
        ("peer", status.get("peer_id")),
        ("state", status.get("state")),
        ("reason", f"{reason['message']} ({reason['code']})" if reason else None),
        ("remedy", reason["remedy"] if reason else None),
        ("run", f"{run_id[:16]} {status.get('run_name', '')}" if run_id else "none"),
        ("round", f"{status.get('round', 0)}, {status.get('tokens') or 0:,} tokens of all peers"),
        ("digest", digest),
        ("inner step", f"{status.get('inner_step')} of {status.get('inner_steps')}" if status.get("trains") else None),
        ("loss", f"{loss:.4f} at {status.get('tokens_per_s') or 0:,.0f} tokens/s" if loss is not None else None),
        ("held-out", _evaluation(evaluations[-1])),
        ("skipped", f"{status['skipped_steps']} steps were not finite" if status.get("skipped_steps") else None),
        ("voters", len(status.get("electorate") or ())),
        ("lineage", f"behind {status['forks']} FORKs" if status.get("forks") else None),
        ("traffic", f"{amount(status.get('up_bytes') or 0)} up, {amount(status.get('down_bytes') or 0)} down"),
        ("ranks", ", ".join(f"pid {rank['pid']}" for rank in status.get("ranks") or ()) or None),
        ("notice", status.get("notice") or None),
        ("home", status.get("home")),
        *[("address", address) for address in status.get("addresses") or ()],
        *[("warning", warning) for warning in status.get("warnings") or ()],
    ]
    return "\n".join(f"{name:<11}{terminal.one_line(str(value))}" for name, value in rows if value is not None)


def _evaluation(row: Mapping[str, Any]) -> str | None:
    loss = row.get("loss")
    return f"{loss:.4f} nats per token after round {row.get('round')}" if isinstance(loss, float) else None


def _last_words(home: Home) -> str:
    """What the home can still tell: how the last daemon failed, and that there is a run to resume."""
    words = ""
    try:
        failure = json.loads(home.failure.read_text())
        words += f" The last one failed with {failure['code']}: {str(failure['message']).rstrip('.')}."
    except (OSError, ValueError, TypeError, KeyError):
        pass  # it did not fail, or left no readable word
    run_id = home.current_run_id()
    return words + (f" Its run is {run_id.hex()[:16]}; `atoll rounds` shows how far it came." if run_id else "")
