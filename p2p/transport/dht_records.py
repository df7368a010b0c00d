"""What the DHT keeps and believes: valid peer records of this network, in bounded memory, and nothing else.

Three guards around hivemind's DHT. `make_validator`: a node refuses, on store and on read, every entry that is not a
record signed by its subkey under its own key. `make_storage`: what strangers can make a node hold is bounded.
`collect`: a look-up asks several nodes and merges what they have; hivemind's own `get` believes the one answer that
claims to expire last, so that a single node could hide all others. Used by the hivemind transport.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from atoll.p2p.transport import clock
from atoll.p2p.transport.torchless import Hivemind
from atoll.protocol import canonical
from atoll.protocol.errors import AtollError, MalformedError
from atoll.protocol.records import RECORD_LIMIT, PeerRecord, open_record

MAX_RECORDS = 8192
"""Records that a node holds for others, in all (at most 32 MiB)."""
MAX_KEY_BYTES = 2 << 20
"""All records of a run travel in one answer, and an answer of more than 4 MiB never arrives."""
LOOKUP_NODES = 8
_EXPIRY_GRACE_S = 60.0
"""A dictionary of records travels whole and is refused whole, so one that expired on the way must not spoil it."""

_log = logging.getLogger(__name__)


def check_entry(key: str, subkey: str, value: bytes, now_s: float) -> PeerRecord:
    """The record in an entry that is valid under exactly this key and subkey. Raises MalformedError, SignatureError."""
    record = open_record(value, subkey=subkey, now_s=now_s)
    if record.key != key:
        raise MalformedError(f"a record of run {record.run_id.hex()[:16]} belongs to {record.key}, not {key[:99]!r}")
    return record


def make_validator(hivemind: Hivemind) -> Any:
    """A hivemind RecordValidator that lets through valid peer records only."""

    class AtollRecords(hivemind.RecordValidatorBase):  # type: ignore[misc, name-defined]
        def validate(self, record: Any) -> bool:
            try:
                subkey = canonical.decode(record.subkey, limit=128)
                value = canonical.decode(record.value, limit=RECORD_LIMIT + 8)
                if not isinstance(subkey, str) or not isinstance(value, bytes):
                    raise MalformedError("an entry without a subkey or a value of bytes")
                found = open_record(value, subkey=subkey, now_s=clock.network_time_s(), grace_s=_EXPIRY_GRACE_S)
                if record.key != dht_key(hivemind, found.key).to_bytes():
                    raise MalformedError("a record under the key of another run")
                if not record.expiration_time <= found.expires_s:
                    raise MalformedError("a record that is to be kept longer than it lives")
            except AtollError as error:
                _log.debug("refused an entry of the DHT: %s", error)
                return False
            return True

    return AtollRecords()


def make_storage(hivemind: Hivemind) -> Any:
    """Hivemind's local storage with a bound on the number of records."""

    class BoundedStorage(hivemind.LocalStorage):  # type: ignore[misc, name-defined]
        def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
            held = self.get(key)
            siblings = held.value if held is not None and isinstance(held.value, hivemind.DictionaryValue) else None
            others = [] if siblings is None else [entry.value for name, entry in siblings.items() if name != subkey]
            known = siblings is not None and subkey in siblings
            if not known and sum(len(item.value) for _, item in self.items()) >= MAX_RECORDS:
                _log.debug("refused a record: this node already holds %d", MAX_RECORDS)
                return False
            if len(value) + sum(map(len, others)) > MAX_KEY_BYTES:
                _log.debug("refused a record: this node already holds %d of its run", len(others))
                return False
            return bool(super().store_subkey(key, subkey, value, expiration_time))

    return BoundedStorage()


def dht_key(hivemind: Hivemind, key: str) -> Any:
    return hivemind.DHTID.generate(source=key)


async def collect(node: Any, hivemind: Hivemind, key: str) -> dict[str, bytes]:
    """All live, valid records under `key` that this node and the ones nearest to the key hold, newest per peer."""
    key_id = dht_key(hivemind, key)
    nearest = await node.find_nearest_nodes([key_id], k_nearest=LOOKUP_NODES, exclude_self=True)
    answers = await asyncio.gather(*(node.protocol.call_find(peer, [key_id]) for peer in nearest[key_id].values()))
    held = [answer[key_id][0] for answer in answers if answer and key_id in answer]
    held.append(node.protocol.storage.get(key_id))
    found = (entry for item in held for entry in _entries(hivemind, item))
    return merge(key, found, clock.network_time_s())


def merge(key: str, entries: Iterable[tuple[Any, Any]], now_s: float) -> dict[str, bytes]:
    """The valid ones among (subkey, sealed record), the highest sequence number per subkey."""
    best: dict[str, tuple[int, bytes]] = {}
    for subkey, value in entries:
        try:
            record = check_entry(key, subkey, value, now_s)
        except AtollError as error:
            _log.debug("left out a record under %s: %s", key, error)
            continue
        if subkey not in best or best[subkey][0] < record.sequence:
            best[subkey] = (record.sequence, value)
    return {subkey: value for subkey, (_, value) in best.items()}


def _entries(hivemind: Hivemind, item: Any) -> list[tuple[str, bytes]]:
    """(subkey, sealed record) of a dictionary as hivemind stores it: values are msgpack of the bytes."""
    if item is None or not isinstance(item.value, hivemind.DictionaryValue):
        return []
    found = []
    for subkey, (packed, _) in item.value.items():
        try:
            value = canonical.decode(packed, limit=RECORD_LIMIT + 8)
        except AtollError as error:
            _log.debug("left out an entry: %s", error)
            continue
        if isinstance(subkey, str) and isinstance(value, bytes):
            found.append((subkey, value))
    return found

