"""The real network: streams, dialling and signed records over hivemind's p2pd and DHT, in the caller's event loop.

One `HivemindTransport` is one peer. It owns a p2pd and replaces it in place when it dies or freezes: same key, same
port, handlers, records and connections restored; open streams end with `closed`. Every call has a deadline. It does not
know what the streams carry or whether a peer makes progress. Made by the p2p service; `memory` is its twin for tests.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.p2p.transport import clock, dht_records, torchless
from atoll.p2p.transport.address import Address, parse_address
from atoll.p2p.transport.bootstrap import Bootstrap, group
from atoll.p2p.transport.byte_stream import SocketStream
from atoll.p2p.transport.control import DaemonRefusedError
from atoll.p2p.transport.diagnose import explain_daemon_error, probe
from atoll.p2p.transport.p2pd import (
    RPC_TIMEOUT_S,
    Daemon,
    DaemonSettings,
    PortReservation,
    check_socket_prefix,
    remove_stale_sockets,
)
from atoll.p2p.transport.port import Stream, StreamHandler, TransportError
from atoll.p2p.transport.slots import StreamSlots
from atoll.protocol.errors import AtollError, MalformedError
from atoll.protocol.identity import PeerId, check_peer_id, peer_name

_DIAL_TIMEOUT_S = 6.0
_BOOTSTRAP_TIMEOUT_S = 14.5
_RECORD_TIMEOUT_S = 10.0
_MAX_KNOWN_PEERS = 1024
_MAX_ADDRESSES = 16
_MAX_OWN_RECORDS = 64
_CONCURRENT_DIALS = 8

_log = logging.getLogger(__name__)
