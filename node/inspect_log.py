"""What `atoll inspect verify` finds out: a training log from a home or a file, checked again without a daemon.

Finds the log and its manifest and puts together what `p2p.audit` (signatures, quorums, electorates, links, tokens) and,
for a home, `p2p.replay` (states, results) say. Prints nothing. Imports neither torch nor hivemind.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.node.errors import HomeError, UsageError
from atoll.node.paths import Home
from atoll.node.run_source import read_manifest
from atoll.p2p.audit import Audit, Finding
from atoll.p2p.replay import Replay, replay
from atoll.p2p.run_store import DamagedError, scan_log
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import peer_name
from atoll.protocol.manifest import Manifest


@dataclass(frozen=True)
class Verdict:
    """`replay` is None for a log from elsewhere, and where the log itself does not hold."""

    manifest: Manifest
    audit: Audit
    replay: Replay | None = None

    @property
    def valid(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> list[Finding]:
        return [*self.audit.problems, *_findings(self.replay.problems if self.replay else [])]

    @property
    def notices(self) -> list[Finding]:
        return [*self.audit.notices, *_findings(self.replay.notices if self.replay else [])]

    @property
    def voters(self) -> list[str]:
        """PeerIDs of the electorate at the end, by seniority."""
        return [peer_name(peer) for peer in self.audit.tip.voters]

    def tree(self) -> dict[str, Any]:
        """What `--json` prints."""
        tip, states = self.audit.tip, self.replay
        return {
            "valid": self.valid,
            "run_id": self.manifest.run_id.hex(),
            "rounds_verified": tip.round,
            "forks": tip.forks,
            "tokens": tip.tokens,
            "state_digest": tip.state.hex(),
            "tip": tip.id.hex(),
            "voters": self.voters,
            "links_verified": self.audit.links,
            "links_unchecked": self.audit.unchecked,
            "problems": [_row(finding) for finding in self.problems],
            "notices": [_row(finding) for finding in self.notices],
            "states": None if states is None else {
                "verified": states.states, "rounds_replayed": states.rounds,
                "first_round": states.first, "last_round": states.last,
            },
        }


def verify_home(home: Home, *, deep: bool = False) -> Verdict:
    """The log of the run that a home is on, with the states and results beside it.

    Raises UsageError where the home is on no run, and whatever is wrong with its manifest.
    """
    run_id = home.current_run_id()
    if run_id is None:
        raise UsageError(f"the home {home.root} is on no run: name another --home, or a log with --log FILE.")
    folder = home.run_folder(run_id)
    manifest = read_manifest(folder / "manifest")
    if manifest.run_id != run_id:
        raise HomeError(f"{folder / 'manifest'} belongs to another run: give the run again with `atoll up --run`.")
    audit = Audit(manifest)
    if (folder / "log").exists():
        _read(folder / "log", audit, own=True)
    if audit.problems:
        return Verdict(manifest, audit)
    return Verdict(manifest, audit, replay(folder, manifest, audit.certificates, deep=deep))


def verify_file(log: Path, manifest: Path | None) -> Verdict:
    """A log that was copied elsewhere; its manifest is the one given, or the file `manifest` beside it.

    Raises UsageError where there is no such log or no manifest, and whatever is wrong with the manifest.
    """
    if not _is_file(log):
        raise UsageError(f"the log {log} is no file: name the file `log` of a run's folder.")
    beside = log.with_name("manifest")
    if manifest is None and not _is_file(beside):
        raise UsageError(
            f"there is no manifest beside {log}, and only that says who voted at first: name one with --manifest FILE."
        )
    known = read_manifest(beside if manifest is None else manifest)
    audit = Audit(known)
    _read(log, audit, own=False)
    return Verdict(known, audit)


def _read(path: Path, audit: Audit, *, own: bool) -> None:
    """Check every entry of a log. A torn end is what a crash leaves in a home (`own`), elsewhere it is a fault."""
    start = 0
    try:
        for entry, end in scan_log(path):
            audit.add(entry.link, start)
            start = end
    except DamagedError as error:
        if own and error.torn and not audit.problems:
            audit.notices.append(Finding("the log", f"{error} The daemon cuts it off when it starts.", byte=start))
        else:
            audit.damaged(str(error), start)
    except MalformedError as error:
        audit.damaged(str(error), start)
    except OSError as error:
        raise UsageError(f"cannot read the log {path}: {error.strerror}.") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or a zero byte
        return False


def _findings(lines: list[str]) -> list[Finding]:
    return [Finding("on this disk", line) for line in lines]


def _row(finding: Finding) -> dict[str, Any]:
    return {
        "where": finding.where, "message": finding.message, "round": finding.round,
        "link": None if finding.link is None else finding.link.hex(), "byte": finding.byte,
    }
