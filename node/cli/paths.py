"""`atoll paths`: where the files of a home lie. Touches nothing."""

import argparse

from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, add_command, home_of, print_json
from atoll.node.exit_codes import ExitCode


def add(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "paths", "tell where the files of a home lie", as_json=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    home = home_of(args)
    paths = {
        "home": home.root, "identity": home.identity, "config": home.config, "lock": home.lock, "logs": home.logs,
        "runtime": home.runtime, "socket": home.api_socket, "runs": home.runs,
    }
    run_id = home.current_run_id()
    if run_id is not None:
        paths |= {"run": home.run_folder(run_id), "manifest": home.run_folder(run_id) / "manifest"}
    if args.json:
        print_json({name: str(path) for name, path in paths.items()})
    else:
        terminal.say("\n".join(f"{name:<10}{path}" for name, path in paths.items()))
    return ExitCode.OK
