"""A run's folder on disk: the manifest, the training log, full outer states, peers to dial again.

Files are replaced whole, or appended to with a length and a checksum; a torn tail of the log is cut off on opening, as
`read_log_file`, for a log copied from elsewhere, does not. What a voter must remember is in `journal`, not here.
Readers for the command line (`read_rounds`, `read_summary`) work without a daemon. Imports neither torch nor hivemind.
"""

import logging
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.p2p import durable
from atoll.protocol import canonical
from atoll.protocol.certificate import VALUE_LIMIT, Certificate
from atoll.protocol.digest import Digest, content_digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.fork import Fork
from atoll.protocol.identity import PeerId, check_peer_id, peer_name
from atoll.protocol.manifest import MAX_CONTRIBUTORS
from atoll.protocol.read import count, fields, rows

ENTRY_LIMIT = VALUE_LIMIT + (1 << 20)  # a value, and a thousand signatures around it
PEERS_LIMIT = 1 << 20
NEWEST_STATES = 2  # one may turn out to be damaged

_log = logging.getLogger(__name__)
_HEAD = 8 + 8  # length, check
_STATE_NAME = re.compile(r"(\d{1,19})-([0-9a-f]{64})")


@dataclass(frozen=True)
class LogEntry:
    """A link of the chain with what only this peer knows of its round."""

    link: Certificate | Fork
    seconds: float
    bytes_up: int
    bytes_down: int
    dropped: tuple[tuple[PeerId, str], ...] = ()  # who was expected and is not in it, and the phase it was lost in

    @property
    def certificate(self) -> Certificate | None:
        """None for a FORK."""
        return self.link if isinstance(self.link, Certificate) else None

    def tree(self) -> list[Any]:
        link = [isinstance(self.link, Fork), self.link.tree()]
        return [link, float(self.seconds), self.bytes_up, self.bytes_down, [list(row) for row in self.dropped]]

    @classmethod
    def from_tree(cls, tree: Any) -> "LogEntry":
        link, seconds, up, down, dropped = fields(tree, 5)
        is_fork, body = fields(link, 2)
        if not isinstance(is_fork, bool) or not isinstance(seconds, float) or not math.isfinite(seconds):
            raise MalformedError("a log entry with a field of the wrong type")
        return cls(
            Fork.from_tree(body) if is_fork else Certificate.from_tree(body),
            seconds,
            count(up),
            count(down),
            tuple((check_peer_id(peer), _phase(phase)) for peer, phase in rows(dropped, 2, MAX_CONTRIBUTORS)),
        )


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

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    # The training log.

    def log(self) -> list[LogEntry]:
        """All entries up to the first torn or damaged one; from there on the file is cut off.

        Raises MalformedError for an entry that is intact and yet no link: another version of this program wrote it.
        """
        path = self.folder / "log"
        if not path.exists():
            return []
        entries, end = _intact(path)
        if path.stat().st_size > end:
            os.truncate(path, end)
        durable.sync(path)  # a killed process's last entry may be in the page cache only, and votes are forgotten by it
        return entries

    def append(self, entry: LogEntry) -> None:
        """Add an entry durably. Raises OSError, and then the log is as it was."""
        durable.append(self.folder / "log", _frame(entry))

    def rewrite(self, entries: Iterable[LogEntry]) -> None:
        """Replace the log durably: by a prefix of itself, or by another lineage."""
        with durable.replacing(self.folder / "log") as file:
            file.writelines(map(_frame, entries))

    # Full states. The file is parameters, then momentum where there is one, little-endian float32.

    def save_state(
        self, parent: Digest, round: int, vectors: list[npt.NDArray[np.float32]], retain_rounds: int  # noqa: A002
    ) -> None:
        """Write the state of certificate `parent` durably, then drop those that are of no more use.

        Kept are the newest two, and as few of those before, of the last `retain_rounds` rounds, as leave no longer gap
        than half of that: so one lies between half and all of `retain_rounds` behind the tip, and the results kept
        lead from there to any certificate since. Five at most. (States must be saved at least that often.)
        """
        path = self.states / f"{round}-{parent.hex()}"
        with durable.replacing(path) as file:
            for vector in vectors:
                file.write(np.ascontiguousarray(vector, dtype="<f4").data.cast("B"))
        for stale in self.states.glob("*.partial"):
            stale.unlink()
        # A later round's is of a lineage that was left; so is another one of this round.
        saved = sorted((number, place) for number, place in self._states() if number < round)
        kept = {path, *_spaced([*saved, (round, path)], retain_rounds)}
        for _, place in self._states():
            if place not in kept:
                place.unlink()

    def keep_states(self, lineage: Collection[Digest]) -> None:
        """Drop the states of other certificates than these: of a lineage that was left."""
        for name, path in self.saved_states().items():
            if name not in lineage:
                path.unlink()

    def saved_states(self) -> dict[Digest, Path]:
        """States on disk by certificate; their digests are for the reader to check."""
        return {bytes.fromhex(path.name.partition("-")[2]): path for _, path in self._states()}

    def _states(self) -> list[tuple[int, Path]]:
        found = [(_STATE_NAME.fullmatch(path.name), path) for path in self.states.iterdir()]
        return [(int(match[1]), path) for match, path in found if match]

    # Peers to dial after a restart.

    def save_peers(self, addresses: list[str]) -> None:
        body = canonical.encode(addresses)
        durable.replace(self.folder / "known_peers", content_digest(body) + body)

    def peers(self) -> list[str]:
        """What was saved last; nothing if that is damaged, since invites and the manifest name peers too."""
        path = self.folder / "known_peers"
        if not path.exists() or path.stat().st_size > PEERS_LIMIT:
            return []
        data = path.read_bytes()
        if content_digest(data[32:]) != data[:32]:
            return []
        tree = canonical.decode(data[32:], limit=PEERS_LIMIT)
        return [item for item in tree if isinstance(item, str)] if isinstance(tree, tuple) else []


def read_log_file(path: Path) -> list[LogEntry]:
    """The entries of a log from anywhere. Raises MalformedError, with the place, for what is torn or damaged."""
    try:
        return [entry for entry, _ in scan_log(path)]
    except OSError as error:
        raise MalformedError(f"cannot read {path}: {error.strerror}; name the file `log` of a run's folder.") from error


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rows of `atoll rounds --json`, oldest first."""
    path = folder / "log"
    return story(_intact(path)[0]) if path.exists() else []


def read_summary(folder: Path) -> dict[str, Any]:
    """Where a stopped peer's log ends: round, tokens, state digest (None at genesis)."""
    path = folder / "log"
    for entry in reversed(_intact(path)[0] if path.exists() else []):
        if isinstance(entry.link, Certificate):
            value = entry.link.value
            return {"round": value.round, "tokens": value.tokens, "state_digest": value.state.hex()}
    return {"round": 0, "tokens": 0, "state_digest": None}


def story(entries: Iterable[LogEntry]) -> list[dict[str, Any]]:
    """One row per certified round of a whole log, as JSON-ready text and numbers."""
    told: list[dict[str, Any]] = []
    fork: Fork | None = None  # one with no certificate behind it yet
    lineage, forks = None, 0
    for entry in entries:
        if isinstance(entry.link, Fork):
            fork, lineage, forks = entry.link, entry.link.id.hex(), forks + 1
            continue
        row = _row(entry.link, entry) | {"lineage": lineage, "forks": forks, "fork": None}
        if fork is not None:
            row["fork"] = {"id": lineage, "rank": int(fork.rank), "survivors": [peer_name(p) for p in fork.signers]}
            fork = None
        told.append(row)
    return told


def _row(certificate: Certificate, entry: LogEntry) -> dict[str, Any]:
    value = certificate.value
    return {
        "round": value.round,
        "parent": value.parent.hex(),
        "certificate": value.id.hex(),
        "state_digest": value.state.hex(),
        "ballot": certificate.ballot,
        "contributors": [{"peer_id": peer_name(c.peer), "tokens": c.tokens} for c in value.contributions],
        "dropped": [{"peer_id": peer_name(peer), "phase": phase} for peer, phase in entry.dropped],
        "voters": [peer_name(vote.peer) for vote in certificate.votes],
        "electorate": [peer_name(voter.peer) for voter in value.electorate],
        "empty": not value.contributions,
        "seconds": round(entry.seconds, 3),
        "bytes_up": entry.bytes_up,
        "bytes_down": entry.bytes_down,
        "tokens": value.tokens,
    }


def _spaced(states: list[tuple[int, Path]], retain_rounds: int) -> list[Path]:
    """Which of these states, ascending by round, `save_state` keeps."""
    half, tip = retain_rounds - retain_rounds // 2, states[-1][0]
    older = [state for state in states[:-NEWEST_STATES] if tip - state[0] <= retain_rounds]
    newest = states[-NEWEST_STATES:]
    kept: list[tuple[int, Path]] = []
    for state, following in zip(older, [*older, *newest][1:], strict=False):
        if not kept or following[0] - kept[-1][0] > half:
            kept.append(state)
    return [path for _, path in [*kept, *newest]]


def scan_log(path: Path) -> Iterator[tuple[LogEntry, int]]:
    """Each entry and the offset behind it. Raises DamagedError, MalformedError, OSError."""
    with path.open("rb") as file:
        offset, size = 0, os.fstat(file.fileno()).st_size
        while offset < size:
            head = file.read(_HEAD)
            length = int.from_bytes(head[:8], "little")
            if len(head) == _HEAD and length > ENTRY_LIMIT:
                raise DamagedError(path, offset, f"says that it has {length} bytes; {ENTRY_LIMIT} is the most")
            if len(head) < _HEAD or length > size - offset - _HEAD:
                raise DamagedError(path, offset, "is torn: the file ends within it", torn=True)
            body = file.read(length)
            if content_digest(body)[:8] != head[8:]:
                raise DamagedError(path, offset, "is damaged: it does not have the checksum before it")
            try:
                entry = LogEntry.from_tree(canonical.decode(body, limit=ENTRY_LIMIT))
            except MalformedError as error:
                raise MalformedError(
                    f"{path}: the entry at byte {offset} is intact but no link of a training log as this version "
                    f"writes it ({error}); move the file away, and the log is fetched from peers again."
                ) from error
            offset += _HEAD + length
            yield entry, offset


def _intact(path: Path) -> tuple[list[LogEntry], int]:
    """The entries before the first torn or damaged one, and the offset behind the last of them."""
    entries: list[LogEntry] = []
    end = 0
    try:
        for entry, offset in scan_log(path):
            entries.append(entry)
            end = offset
    except DamagedError as error:
        _log.warning("%s", error)
    return entries, end


class DamagedError(MalformedError):
    """Bytes that nobody can have meant: a crash or the disk did it. `torn`: the file ends within an entry."""

    def __init__(self, path: Path, offset: int, fault: str, *, torn: bool = False) -> None:
        super().__init__(f"{path}: the entry at byte {offset} {fault}. What stands before it is intact.")
        self.torn = torn


def _frame(entry: LogEntry) -> bytes:
    body = canonical.encode(entry.tree())
    return len(body).to_bytes(8, "little") + content_digest(body)[:8] + body


def _phase(item: Any) -> str:
    if not isinstance(item, str) or len(item) > 32:
        raise MalformedError("a log entry with a phase that is none")
    return item
