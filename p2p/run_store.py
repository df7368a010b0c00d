"""A run's folder on disk: the manifest, the training log, this peer's promises and contribution, states.

Everything is written to a new file, fsynced and renamed, or appended with a length and a checksum; a torn tail is cut
off on opening. Readers for the command line (`read_rounds`, `read_summary`) work without a daemon. Imports neither
torch nor hivemind.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.protocol import canonical
from atoll.protocol.certificate import VALUE_LIMIT, Certificate, Contribution, Value
from atoll.protocol.digest import Digest, content_digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import peer_name

_LENGTH = 8
_CHECK = 8


@dataclass(frozen=True)
class LogEntry:
    """A certificate with what only this peer knows of its round."""

    certificate: Certificate
    seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class SavedState:
    """A full outer state on disk, stamped with its certificate."""

    parent: Digest
    path: Path


class RunStore:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states = folder / "state"
        self.states.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest"

    @property
    def genesis(self) -> Path:
        return self.folder / "genesis"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    # The training log.

    def log(self) -> list[LogEntry]:
        """All intact entries; a torn or damaged tail is cut off the file."""
        entries, end = _read_log(self.folder / "log")
        path = self.folder / "log"
        if path.exists() and path.stat().st_size > end:
            os.truncate(path, end)
        return entries

    def append(self, entry: LogEntry) -> None:
        """Add an entry durably."""
        with (self.folder / "log").open("ab") as file:
            file.write(_frame(entry))
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, entries: list[LogEntry]) -> None:
        """Replace the log by a prefix of itself, durably."""
        _replace(self.folder / "log", b"".join(map(_frame, entries)))

    # Promises and votes: durable before they leave.

    def save_vote(self, parent: Digest, promised: int, accepted: tuple[int, Value] | None) -> None:
        tree = [parent, promised, None if accepted is None else [accepted[0], accepted[1].tree()]]
        _replace(self.folder / "vote", _checked(canonical.encode(tree)))

    def vote(self) -> tuple[Digest, int, tuple[int, Value] | None] | None:
        """What was saved last; None if nothing intact is there."""
        tree = _read_checked(self.folder / "vote", VALUE_LIMIT)
        if tree is None:
            return None
        parent, promised, accepted = tree
        return parent, promised, None if accepted is None else (accepted[0], Value.from_tree(accepted[1]))

    # This peer's own contribution: its root is durable before its first byte is sent.

    def save_contribution(self, parent: Digest, contribution: Contribution, leaves: tuple[Digest, ...]) -> None:
        tree = [parent, contribution.peer, contribution.root, contribution.tokens, list(leaves)]
        _replace(self.folder / "contribution", _checked(canonical.encode(tree)))

    def contribution(self) -> tuple[Digest, Contribution, tuple[Digest, ...]] | None:
        tree = _read_checked(self.folder / "contribution", VALUE_LIMIT)
        if tree is None:
            return None
        parent, peer, root, tokens, leaves = tree
        return parent, Contribution(peer, root, tokens), leaves

    # Full states. The file is parameters, then momentum where there is one, little-endian float32.

    def save_state(self, parent: Digest, vectors: list[npt.NDArray[np.float32]]) -> None:
        """Write a state durably, then drop all but the newest two."""
        path = self.states / parent.hex()
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            for vector in vectors:
                file.write(np.ascontiguousarray(vector, dtype="<f4").data.cast("B"))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        for old in sorted(self.states.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)[:-2]:
            old.unlink()

    def saved_states(self) -> dict[Digest, Path]:
        """States on disk by certificate; their digests are for the reader to check."""
        return {bytes.fromhex(path.name): path for path in self.states.iterdir() if not path.suffix}

    # Peers to dial after a restart.

    def save_peers(self, addresses: list[str]) -> None:
        _replace(self.folder / "known_peers", _checked(canonical.encode(addresses)))

    def peers(self) -> list[str]:
        tree = _read_checked(self.folder / "known_peers", 1 << 20)
        return [item for item in tree if isinstance(item, str)] if isinstance(tree, tuple) else []


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rows of `atoll rounds --json`, oldest first."""
    return [row(entry) for entry in _read_log(folder / "log")[0]]


def read_summary(folder: Path) -> dict[str, Any]:
    """Where a stopped peer's log ends: round, tokens, state digest (None at genesis)."""
    entries = _read_log(folder / "log")[0]
    if not entries:
        return {"round": 0, "tokens": 0, "state_digest": None}
    value = entries[-1].certificate.value
    return {"round": value.round, "tokens": value.tokens, "state_digest": value.state.hex()}


def row(entry: LogEntry) -> dict[str, Any]:
    """One log entry as JSON-ready text and numbers."""
    value = entry.certificate.value
    return {
        "round": value.round,
        "parent": value.parent.hex(),
        "certificate": value.id.hex(),
        "state_digest": value.state.hex(),
        "ballot": entry.certificate.ballot,
        "contributors": [{"peer_id": peer_name(c.peer), "tokens": c.tokens} for c in value.contributions],
        "seconds": round(entry.seconds, 3),
        "bytes_up": entry.bytes_up,
        "bytes_down": entry.bytes_down,
        "tokens": value.tokens,
    }


def _read_log(path: Path) -> tuple[list[LogEntry], int]:
    """Intact entries and the offset behind the last of them."""
    data = path.read_bytes() if path.exists() else b""
    entries: list[LogEntry] = []
    end = 0
    while end + _LENGTH + _CHECK <= len(data):
        size = int.from_bytes(data[end : end + _LENGTH], "little")
        start = end + _LENGTH + _CHECK
        body = data[start : start + size]
        if len(body) < size or content_digest(body)[:_CHECK] != data[end + _LENGTH : start]:
            break
        tree, seconds, up, down = canonical.decode(body, limit=VALUE_LIMIT)
        entries.append(LogEntry(Certificate.from_tree(tree), seconds, up, down))
        end = start + size
    return entries, end


def _frame(entry: LogEntry) -> bytes:
    body = canonical.encode([entry.certificate.tree(), float(entry.seconds), entry.bytes_up, entry.bytes_down])
    return len(body).to_bytes(_LENGTH, "little") + content_digest(body)[:_CHECK] + body


def _checked(body: bytes) -> bytes:
    return content_digest(body) + body


def _read_checked(path: Path, limit: int) -> Any:
    """The tree in a checksummed file; None if there is none, or only a torn one (it was never acted upon)."""
    if not path.exists():
        return None
    data = path.read_bytes()
    if content_digest(data[32:]) != data[:32]:
        return None
    try:
        return canonical.decode(data[32:], limit=limit)
    except MalformedError:
        return None


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
