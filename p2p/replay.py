"""Do the states on this disk agree with the log? Digests of saved states, and outer steps taken again from results.

Reads, and leaves the disk as it is: a daemon may be at work in the same folder, so that files may also go away while
this reads, which is no fault. Trusts the certificates it is given, which `audit` has checked; needs no daemon, no
network and no torch. Used by `node.inspect_log`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atoll.p2p.outer_state import Chunks, OuterState, Stepper, load_genesis, load_state
from atoll.p2p.run_store import RunStore
from atoll.protocol import known_answer
from atoll.protocol.certificate import Certificate
from atoll.protocol.digest import ZERO_DIGEST, Digest, content_digest
from atoll.protocol.errors import MalformedError, MismatchError, MissingBytesError, NonFiniteError
from atoll.protocol.manifest import Manifest

_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass
class Replay:
    """What was found. `first` and `last` are the rounds replayed; None where nothing could be."""

    states: int = 0  # saved states, genesis among them, that have their certified digest
    first: int | None = None
    last: int | None = None
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return 0 if self.first is None or self.last is None else self.last - self.first + 1


class StoredResults:
    """The results in a folder of blobs, as they are now: nothing is made, nothing is removed."""

    def __init__(self, folder: Path) -> None:
        self._places = {
            bytes.fromhex(path.name): path
            for path in folder.glob("result-*/*") if _BLOB_NAME.fullmatch(path.name)
        }

    def size(self, digest: Digest) -> int | None:
        try:
            return self._places[digest].stat().st_size
        except (KeyError, OSError):
            return None

    def read(self, digest: Digest) -> bytes:
        """Raises KeyError for what is gone, MismatchError for what is damaged."""
        try:
            data = self._places[digest].read_bytes()
        except OSError as error:
            raise KeyError(digest) from error
        if content_digest(data) != digest:
            raise MismatchError(f"the result in {self._places[digest]} is damaged: it does not have its digest")
        return data

    def has_all(self, certificate: Certificate) -> bool:
        return all(p.digest == ZERO_DIGEST or self.size(p.digest) is not None for p in certificate.value.parts)


def replay(folder: Path, manifest: Manifest, lineage: Sequence[Certificate], *, deep: bool = False) -> Replay:
    """Hold what lies in a run's folder against its certificates, from genesis on, oldest first.

    Every saved state must have its certified digest; from the newest of them before the end (`deep`: the oldest) the
    results on this disk, where they are all there, must lead to the certified states. Needs memory for one state.
    Raises NondeterministicCpuError where this machine cannot tell.
    """
    known_answer.check()
    found = Replay()
    good = _good_states(folder, manifest, lineage, found)
    results = StoredResults(folder / "blobs")
    bound = len(lineage)
    while bound and results.has_all(lineage[bound - 1]):
        bound -= 1
    starts = sorted(done for done in good if bound <= done < len(lineage))
    if not lineage or not starts:
        if lineage:
            found.notices.append("no state on this disk has all the results behind it beside it: nothing was replayed")
        return found
    done = starts[0] if deep else starts[-1]
    try:
        state = _load(manifest, lineage, done, good[done])
    except (MismatchError, OSError) as error:
        found.notices.append(f"the state of round {done} went away while it was read ({error}): nothing was replayed")
        return found
    _advance(state, Stepper(manifest, results), lineage[done:], found)
    return found


def _good_states(
    folder: Path, manifest: Manifest, lineage: Sequence[Certificate], found: Replay
) -> dict[int, Path]:
    """Saved states with their certified digest, by the number of certificates before them; 0 is genesis."""
    store_states = RunStore(folder).saved_states() if (folder / "state").is_dir() else {}
    numbers = {certificate.id: at + 1 for at, certificate in enumerate(lineage)}
    saved = {0: folder / "genesis"} if (folder / "genesis").exists() else {}
    for name, path in store_states.items():
        if name in numbers:
            saved[numbers[name]] = path
        else:
            found.notices.append(f"{path.name} is a state that this log does not lead to")
    good: dict[int, Path] = {}
    for done, path in sorted(saved.items()):
        try:
            _load(manifest, lineage, done, path)
        except FileNotFoundError:
            continue  # the daemon has dropped it since
        except OSError as error:
            found.problems.append(f"cannot read the state {path}: {error.strerror}")
        except MismatchError as error:
            place = f"round {lineage[done - 1].value.round}" if done else "genesis"
            found.problems.append(f"the state of {place} on this disk is not the certified one: {error}")
        else:
            good[done] = path
    found.states = len(good)
    return good


def _load(manifest: Manifest, lineage: Sequence[Certificate], done: int, path: Path) -> OuterState:
    if not done:
        return load_genesis(path, manifest)
    value = lineage[done - 1].value
    return load_state(path, manifest, value.id, value.round, value.tokens, value.state)


def _advance(state: OuterState, stepper: Stepper, rest: Sequence[Certificate], found: Replay) -> None:
    chunks: dict[int, Chunks] = {}
    for certificate in rest:
        number = certificate.value.round
        try:
            chunks = stepper.advance(state, certificate, chunks)
        except MissingBytesError:
            found.notices.append(f"results of round {number} went away while they were read: the replay ends before it")
            return
        except (MismatchError, MalformedError, NonFiniteError) as error:
            found.problems.append(f"round {number}: the results on this disk do not lead to its state: {error}")
            return
        found.first, found.last = found.first or number, number
