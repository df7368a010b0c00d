"""Loads hivemind's libp2p bindings and DHT without torch: 42 MB and 0.2 s instead of 281 MB and 2 s.

hivemind's packages import everything they contain, torch included, from their `__init__`. Three of them are replaced
in `sys.modules` by modules that carry only `__path__` (and the four names that the submodules used here take from
`hivemind.utils`). This knows hivemind 1.1.12, which pyproject.toml pins; a test asserts that torch stays out.
A process that loaded hivemind this way cannot use the rest of it. Called by the hivemind transport only.
"""

import importlib
import importlib.util
import logging
import sys
import types
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from atoll.p2p.transport import clock

LOGGER_NAME = "atoll.p2p.transport.libp2p"

_FROM_UTILS = (
    ("get_logger", "logging"), ("MSGPackSerializer", "serializer"),
    ("SerializerBase", "serializer"), ("get_dht_time", "timed_storage"),
)


@dataclass(frozen=True)
class Hivemind:
    """The few classes of hivemind that the transport stands on (untyped: hivemind ships no type information)."""

    P2P: Any
    PeerID: Any
    Multiaddr: Any
    ControlFailure: type[Exception]
    DaemonError: type[Exception]
    DHTNode: Any
    DHTID: Any
    LocalStorage: Any
    DictionaryValue: Any
    RecordValidatorBase: Any
    dht_pb2: Any


@cache
def load() -> Hivemind:
    """Import hivemind without torch, its log lines routed to the logger `LOGGER_NAME`. Idempotent."""
    if "hivemind" not in sys.modules:
        _plant_packages()
    bindings = importlib.import_module("hivemind.p2p.p2p_daemon_bindings.utils")
    daemon = importlib.import_module("hivemind.p2p.p2p_daemon")
    # The deprecated function that it uses would end in an error wherever warnings are errors.
    daemon.path = lambda package, name: resources.as_file(resources.files(package) / name)  # type: ignore[attr-defined]
    daemon.loglevel = "ERROR"  # type: ignore[attr-defined]  # p2pd's own verbosity, unless GOLOG_LOG_LEVEL is set
    storage = importlib.import_module("hivemind.dht.storage")
    loaded = Hivemind(
        P2P=daemon.P2P,
        PeerID=importlib.import_module("hivemind.p2p").PeerID,
        Multiaddr=importlib.import_module("hivemind.utils.multiaddr").Multiaddr,
        ControlFailure=bindings.ControlFailure,
        DaemonError=bindings.P2PDaemonError,
        DHTNode=importlib.import_module("hivemind.dht.node").DHTNode,
        DHTID=importlib.import_module("hivemind.dht.routing").DHTID,
        LocalStorage=storage.DHTLocalStorage,
        DictionaryValue=storage.DictionaryDHTValue,
        RecordValidatorBase=importlib.import_module("hivemind.dht.validation").RecordValidatorBase,
        dht_pb2=importlib.import_module("hivemind.proto.dht_pb2"),
    )
    # What peers are told when they ask for the time is this machine's own clock: see `clock`.
    importlib.import_module("hivemind.dht.protocol").get_dht_time = clock.machine_time_s  # type: ignore[attr-defined]
    _route_logs()
    return loaded


def _plant_packages() -> None:
    found = importlib.util.find_spec("hivemind")
    if found is None or not found.submodule_search_locations:
        raise ImportError("hivemind is not installed: run `pip install 'hivemind==1.1.12'`.")
    root = Path(next(iter(found.submodule_search_locations)))
    for name, folder in (("hivemind", root), ("hivemind.utils", root / "utils"), ("hivemind.dht", root / "dht")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    # Before anything copies the function's name: every expiry in the DHT is judged by the network's clock.
    importlib.import_module("hivemind.utils.timed_storage").get_dht_time = clock.network_time_s  # type: ignore[attr-defined]
    utils = sys.modules["hivemind.utils"]
    for name, module in _FROM_UTILS:
        setattr(utils, name, getattr(importlib.import_module(f"hivemind.utils.{module}"), name))


class _Forward(logging.Handler):
    """Hands hivemind's and p2pd's lines to our logger, one level lower: their warnings are our details."""

    def __init__(self) -> None:
        super().__init__()
        self._target = logging.getLogger(LOGGER_NAME)
        self._target.addHandler(logging.NullHandler())  # nobody configured logging: then nothing reaches the terminal

    def emit(self, record: logging.LogRecord) -> None:
        level = logging.INFO if record.levelno >= logging.ERROR else logging.DEBUG
        if self._target.isEnabledFor(level):
            self._target.log(level, "%s: %s", record.name, record.getMessage(), exc_info=record.exc_info)


def _route_logs() -> None:
    logging.addLevelName(logging.WARNING, "WARNING")  # hivemind renames it for the whole process
    theirs = logging.getLogger("hivemind")
    for handler in list(theirs.handlers):
        theirs.removeHandler(handler)
    theirs.addHandler(_Forward())
    theirs.propagate = False
