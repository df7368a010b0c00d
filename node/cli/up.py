"""`atoll up`: the daemon in the foreground. Checks all that a person may have got wrong before anything is started."""

import argparse
import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.node import config as node_config
from atoll.node import terminal
from atoll.node.cli.parser import Subparsers, home_flag, home_of
from atoll.node.errors import UsageError
from atoll.node.paths import Home, write_home_file
from atoll.protocol.identity import Identity, peer_name

if TYPE_CHECKING:
    from atoll.node.config import NodeConfig
    from atoll.node.run_source import RunSource

DESCRIPTION = """\
Join a run, or resume the one this home was on, and train until the end or Ctrl-C (a second Ctrl-C ends at once).
Flags below --run describe this node and are remembered in its config.toml: `atoll up` alone does the same again.
"""


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "up", help="join or resume a run", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"keys of config.toml:\n{node_config.describe()}",
    )
    home_flag(parser)
    parser.add_argument("--run", dest="source", metavar="MANIFEST_OR_INVITE", help="a manifest file, or an invite")
    switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": None}
    parser.add_argument("--ticket", metavar="WORD", help="the owner's leave to vote at once, from `atoll run admit`")
    parser.add_argument("--port", type=int, metavar="N", help="port of the p2p network (0: any, chosen once)")
    parser.add_argument("--data", nargs="+", metavar="PATH", help="text, JSONL or parquet files or folders to train on")
    parser.add_argument("--ranks", type=int, metavar="N", help="local training processes, one per GPU")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of each rank (0: shared out)")
    parser.add_argument("--bootstrap", nargs="+", metavar="ADDR", help="multiaddrs with /p2p/ID, beside the run's")
    parser.add_argument("--trainer", **switch, help="--no-trainer: a bootstrap and relay node that trains nothing")
    parser.add_argument("--loopback", **switch, help="listen on 127.0.0.1 only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises AtollError for everything that is wrong before the daemon lives."""
    home = home_of(args)
    home.prepare()
    from atoll.node.lock import DaemonLock

    with DaemonLock(home) as lock:
        flags = _flags(args)
        config = node_config.override(node_config.load(home), flags)
        source = _source(home, args.source, config)
        _check_data(config, source)
        identity = Identity.load_or_create(home.identity)
        if args.ticket is not None:
            source = _with_ticket(home, source, args.ticket, identity)
        node_config.remember(home, flags)
        port = node_config.choose_port(home, config)
        if source is not None:
            write_home_file(home.current_run, source.run_id.hex().encode() + b"\n")
        warnings = [lock.warning] if lock.warning else []
        if home.root.stat().st_mode & 0o022:
            warnings.append(f"home_writable_by_others: run `chmod 700 {home.root}`")
        return _live(home, config, port, identity, source, warnings)


def _live(
    home: Home, config: "NodeConfig", port: int, identity: Identity, source: "RunSource | None", warnings: list[str]
) -> int:
    from atoll.node import logs
    from atoll.node.daemon_api import DaemonApi
    from atoll.node.launch import Launch
    from atoll.node.supervisor import Supervisor

    os.umask(0o077)
    logs.configure_file(home.log("supervisor"), config.log_mb << 20)
    launch = Launch(home, config, port, identity.peer_id, source)
    launch.service()  # raises ConfigError for addresses that cannot be listened on
    terminal.say(f"atoll: peer {peer_name(identity.peer_id)}, port {port}, home {home.root}")
    if source is None:
        terminal.say("bootstrap and relay node; it is on no run and trains nothing")
    else:
        named = f" ({terminal.one_line(source.name)})" if source.name else ""
        terminal.say(f"run {source.run_id.hex()[:16]}{named}" + ("" if launch.trains else "; this node trains nothing"))
    for warning in warnings:
        terminal.say(f"warning: {warning}")

    async def live() -> int:
        supervisor = Supervisor(launch, terminal.say, warnings)
        return await supervisor.run(DaemonApi(supervisor).answer)

    try:
        return asyncio.run(live())
    except Exception:
        logging.getLogger(__name__).exception("the daemon ended by an error")
        raise


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    """Flags that describe the node and were given."""
    names = ("port", "ranks", "threads", "trainer", "loopback")
    flags = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.data is not None:
        flags["data"] = node_config.absolute_data(tuple(args.data), Path.cwd())
    if args.bootstrap is not None:
        flags["bootstrap"] = tuple(args.bootstrap)
    return flags


def _source(home: Home, given: str | None, config: "NodeConfig") -> "RunSource | None":
    from atoll.node.run_source import resume_run, take_run

    source = take_run(home, given) if given is not None else resume_run(home)
    if source is None and config.trainer:
        raise UsageError(
            f"the home {home.root} is on no run yet: give one with --run MANIFEST_OR_INVITE, "
            "or serve as a bootstrap node with --no-trainer."
        )
    return source


def _with_ticket(home: Home, source: "RunSource | None", word: str, identity: Identity) -> "RunSource":
    """Raises UsageError for a ticket that does not let this home's peer vote in this run."""
    from atoll.node.run_source import take_ticket

    if source is None:
        raise UsageError("a ticket is for a run, and this home is on none: give the run with --run MANIFEST_OR_INVITE.")
    return take_ticket(home, source, word, identity.peer_id)


def _check_data(config: "NodeConfig", source: "RunSource | None") -> None:
    """Refuse a corpus that cannot be trained on before anything starts. Raises DataError."""
    manifest = source.manifest if source is not None else None
    settings = manifest.draft.data if manifest is not None else None
    if not config.trainer or (not config.data and (settings is None or settings.source == "stdlib")):
        return
    if not config.data:
        raise UsageError("this run trains on each peer's own text: name yours with --data PATH.")
    from atoll.trainer.data import check_corpus

    check_corpus(tuple(Path(path) for path in config.data), settings)
