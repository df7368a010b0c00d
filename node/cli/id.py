"""`atoll id`: this node's PeerID. Makes the home and its key where there is none yet."""

import argparse

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, add_command, home_of, print_json
from atoll.node.exit_codes import ExitCode


def add(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "id", "print this node's PeerID, making its key on first use", as_json=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from atoll.protocol.identity import Identity, peer_name

    home = home_of(args)
    if not home.identity.exists():
        home.prepare()
    name = peer_name(Identity.load_or_create(home.identity).peer_id)
    if args.json:
        print_json({"peer_id": name})
    else:
        terminal.say(name)
    return ExitCode.OK
