"""`atoll id`: this node's PeerID. Makes the home and its key where there is none yet."""

import argparse

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, home_flag, home_of, json_flag, print_json
from atoll.node.exit_codes import ExitCode


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "id", help="print this node's PeerID", description="Print this node's PeerID; its home and key are made on first use.",
    )
    home_flag(parser)
    json_flag(parser)
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
