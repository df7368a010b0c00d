"""The commands, settings and environments with which the daemon's children are started. Pure but for a fresh name.

Knows where things lie and what the node's owner wants; called by the supervisor.
"""

import os
import secrets
from dataclasses import dataclass
from typing import Any

from atoll.node.child import python_module
from atoll.node.config import NodeConfig, listen_addresses
from atoll.node.paths import Home
from atoll.node.run_source import RunSource
from atoll.protocol.identity import PeerId


@dataclass(frozen=True)
class Start:
    """One child to be."""

    command: list[str]
    settings: dict[str, Any]
    environment: dict[str, str]
    log: str


@dataclass(frozen=True)
class Launch:
    """Everything that decides how this daemon's children are started."""

    home: Home
    config: NodeConfig
    port: int
    peer_id: PeerId
    run: RunSource | None  # None: a bootstrap and relay node without a run

    @property
    def trains(self) -> bool:
        return self.config.trainer and self.run is not None

    def service(self) -> Start:
        """The p2p service. Raises ConfigError if this machine has no address to listen on."""
        home, config, run = self.home, self.config, self.run
        return Start(python_module("atoll.node.service_process"), {
            "identity_file": str(home.identity),
            "run_folder": str(home.run_folder(run.run_id) if run is not None else home.relay),
            "socket_prefix": home.p2p_socket_prefix,
            "host_maddrs": list(listen_addresses(config, self.port)),
            "announce_maddrs": list(config.announce),
            "initial_peers": list(dict.fromkeys((*config.bootstrap, *(run.addresses if run is not None else ())))),
            "trains": self.trains,
            "upnp": config.upnp and not config.loopback,
            "nat": config.nat and not config.loopback,
            "ticket": run.ticket if run is not None else b"",
            "socket": str(home.service_socket),
            "run_id": run.run_id if run is not None else None,
            "genesis": str(run.genesis) if run is not None and run.genesis is not None else None,
        }, {}, "service")

    def ranks(self) -> list[Start]:
        """The ranks of one start of the trainer; they meet through a file that no other start knows."""
        if self.run is None:
            return []
        folder, store = self.home.run_folder(self.run.run_id), self.home.store_file(secrets.token_hex(8))
        threads = self.config.rank_threads()
        tokenizer = folder / "tokenizer.json"
        shared = {
            "world_size": self.config.ranks, "store_file": str(store), "manifest": str(folder / "manifest"),
            "tokenizer": str(tokenizer) if tokenizer.exists() else None, "data": list(self.config.data),
            "peer_id": self.peer_id, "folder": str(self.home.trainer_folder(self.run.run_id)), "threads": threads,
            "socket": str(self.home.service_socket),
        }
        return [
            Start(
                python_module("atoll.node.rank_process"), {**shared, "rank": rank, "local_rank": rank},
                self._environment(rank, threads), f"rank-{rank}",
            )
            for rank in range(self.config.ranks)
        ]

    def _environment(self, rank: int, threads: int) -> dict[str, str]:
        """What torch reads before any of our code runs."""
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.config.ranks),
            "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
        }
        loopback = {"Linux": "lo", "Darwin": "lo0"}.get(os.uname().sysname)
        return {**environment, "GLOO_SOCKET_IFNAME": loopback} if loopback else environment
