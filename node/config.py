"""The node's own settings: `config.toml` in its home.

Every key is optional. Flags of `atoll up` that describe the node (port, data, ranks, …) are written back here, with
comments kept, so that `atoll up` alone does the same again. Knows nothing of runs: those have their manifest.
"""

import dataclasses
import os
import random
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.node.errors import ConfigError, UsageError
from atoll.node.paths import Home, write_home_file
from atoll.protocol import settings
from atoll.protocol.errors import ManifestError
from atoll.protocol.settings import setting

_PORTS = range(20_000, 32_000)  # below the ports that Linux lends to outgoing connections
_CONFIG_BYTES = 1 << 20
_ALL_HOSTS = ("0.0.0.0", "::")  # noqa: S104  the p2p port is for everybody
_HEAD = "# Settings of this node; `atoll up` flags end up here.\n"


@dataclass(frozen=True)
class NodeConfig:
    port: int = setting(0, low=0, high=65_535, doc="port of the p2p network; 0: pick one and keep it")
    hosts: tuple[str, ...] = setting(_ALL_HOSTS, doc="addresses to listen on, as far as this machine has them")
    loopback: bool = setting(False, doc="listen on 127.0.0.1 only, with no NAT traversal (tests, demo)")
    announce: tuple[str, ...] = setting((), doc="multiaddrs to tell others instead of those that are found")
    bootstrap: tuple[str, ...] = setting((), doc="multiaddrs with /p2p/ID to dial beside those of the run")
    quic: bool = setting(False, doc="listen on QUIC too")
    nat: bool = setting(True, doc="relays and hole punching where this node cannot be dialled")
    upnp: bool = setting(False, doc="ask the router for a port; opens UDP sockets on every interface")
    trainer: bool = setting(True, doc="false: a bootstrap and relay node that trains nothing")
    ranks: int = setting(1, low=1, high=64, doc="local training processes, one per GPU")
    threads: int = setting(0, low=0, high=1024, doc="CPU threads of each rank; 0: the machine's cores shared out")
    data: tuple[str, ...] = setting((), doc="text, JSONL or parquet files or folders; empty: the run's default")
    log_mb: int = setting(5, low=1, high=10_000, doc="size at which a log file is rotated; three old ones are kept")

    def rank_threads(self) -> int:
        """Threads of one rank."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // self.ranks)


def load(home: Home) -> NodeConfig:
    """The settings in the home's config.toml, or the defaults. Raises ConfigError with file, key and remedy."""
    try:
        with home.config.open("rb") as file:
            data = file.read(_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return NodeConfig()
    except OSError as error:
        raise ConfigError(f"cannot read {home.config}: {error.strerror}.") from error
    if len(data) > _CONFIG_BYTES:
        raise ConfigError(f"{home.config} is larger than {_CONFIG_BYTES} bytes: that is no configuration.")
    try:
        return _read(tomllib.loads(data.decode()))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{home.config} is not UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{home.config} is not valid TOML: {error}.") from error
    except ManifestError as error:
        raise ConfigError(f"{home.config}: {error}") from error


def override(config: NodeConfig, flags: Mapping[str, Any]) -> NodeConfig:
    """`config` with the flags that were given, under the same bounds. Raises UsageError."""
    try:
        return _read({**settings.tree(config), **flags})
    except ManifestError as error:
        raise UsageError(f"on the command line: {error}") from error


def remember(home: Home, flags: Mapping[str, Any]) -> None:
    """Write flags into config.toml, leaving the rest of it and its comments alone. Raises HomeError."""
    if not flags:
        return
    import tomlkit

    text = home.config.read_text() if home.config.exists() else _HEAD
    document = tomlkit.parse(text)
    for key, value in flags.items():
        document[key] = list(value) if isinstance(value, tuple) else value
    fresh = tomlkit.dumps(document)
    if fresh != text:
        write_home_file(home.config, fresh.encode())


def choose_port(home: Home, config: NodeConfig) -> int:
    """The port to listen on: the configured one, else the one picked earlier, else a free one, kept from now on."""
    if config.port:
        return config.port
    try:
        kept = int(home.port.read_text("ascii"))
    except (OSError, ValueError):
        kept = 0
    if 0 < kept < 65_536:
        return kept
    port = _free_port()
    write_home_file(home.port, f"{port}\n".encode())
    return port


def listen_addresses(config: NodeConfig, port: int) -> tuple[str, ...]:
    """Multiaddrs to listen on, TCP first. Raises ConfigError if this machine has none of the hosts."""
    hosts = ("127.0.0.1",) if config.loopback else tuple(host for host in config.hosts if _bindable(host))
    if not hosts:
        raise ConfigError(f"this machine has none of the addresses in `hosts` ({', '.join(config.hosts)}).")
    kinds = ("tcp/{port}", "udp/{port}/quic-v1") if config.quic else ("tcp/{port}",)
    return tuple(f"/{_family(host)}/{host}/{kind.format(port=port)}" for kind in kinds for host in hosts)


def absolute_data(paths: tuple[str, ...], base: Path) -> tuple[str, ...]:
    """Data paths as they are remembered: absolute, links left as they are, `~` expanded."""
    return tuple(os.path.abspath(base / os.path.expanduser(path)) for path in paths)  # noqa: PTH100, PTH111


def _read(tree: Mapping[str, Any]) -> NodeConfig:
    config = settings.read(NodeConfig, tree)
    for name in ("announce", "bootstrap"):
        for address in getattr(config, name):
            if not address.startswith("/") or (name == "bootstrap" and "/p2p/" not in address):
                raise ManifestError(
                    f"`{name}` holds {address[:80]!r}, which is not a multiaddr such as "
                    "/ip4/203.0.113.7/tcp/4001/p2p/12D3Koo…"
                )
    return config


def _family(host: str) -> str:
    return "ip6" if ":" in host else "ip4"


def _bindable(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def _free_port() -> int:
    for port in random.sample(_PORTS, 64):
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104  closed at once
            except OSError:
                continue
            return port
    raise ConfigError(f"found no free port between {_PORTS.start} and {_PORTS.stop}: name one with --port.")


def describe() -> str:
    """One line per key, for `atoll up --help`."""
    fields = dataclasses.fields(NodeConfig)
    return "\n".join(f"  {field.name:<10} {field.metadata['doc']}" for field in fields)
