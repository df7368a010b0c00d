"""`atoll peers`: the other peers of the run, as this one sees them."""

import argparse

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, add_command, home_of, print_json, table
from atoll.node.exit_codes import ExitCode


def add(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "peers", "show the other peers of the run", as_json=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from atoll.node.client import Client

    peers = Client(home_of(args)).peers()
    if args.json:
        print_json({"peers": peers})
    elif not peers:
        terminal.say("no other peer is known.")
    else:
        rows = [
            (peer.get("peer_id"), peer.get("state"), peer.get("round"), peer.get("inner_step"),
             _age(peer.get("last_seen_s")), "voter" if peer.get("voter") else "",
             next(iter(peer.get("addresses") or ()), ""))
            for peer in peers
        ]
        terminal.say(table(("peer", "state", "round", "step", "seen", "", "address"), rows, right=(2, 3)))
    return ExitCode.OK


def _age(seconds: object) -> str:
    return f"{seconds:.0f} s ago" if isinstance(seconds, (int, float)) else "never"
