"""Which run `atoll up` is about, and what of it is at hand: a manifest file, an invite, or the home's current run.

A manifest file brings its neighbours `<name>.genesis` and `<name>.tokenizer.json` where they exist; what is missing
comes from peers. Everything is verified before it enters the home. Called by `atoll up` and, for the names, by
`atoll run sign`.
"""

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from atoll.node.errors import HomeError, UsageError
from atoll.node.invite import PREFIX, format_invite, parse_invite
from atoll.node.paths import Home, make_folder, unusable, write_home_file
from atoll.node.ticket import parse_ticket
from atoll.protocol.errors import AtollError, ManifestError
from atoll.protocol.identity import PeerId
from atoll.protocol.manifest import MANIFEST_LIMIT, Manifest

_INVITE_BYTES = 8192
_MAX_PATH = 1024
_WANTED = "give the file that `atoll run sign` wrote, or an invite"


@dataclass(frozen=True)
class RunSource:
    run_id: bytes
    manifest: Manifest | None      # None: it is fetched from peers
    addresses: tuple[str, ...]     # to dial first: from the invite and the manifest
    genesis: Path | None = None    # a file beside the manifest; None: from the home, or from peers
    ticket: bytes = b""            # the owner's leave to vote at once, if there is one

    @property
    def name(self) -> str:
        return self.manifest.draft.run.name if self.manifest is not None else ""


def genesis_beside(manifest: Path) -> Path:
    return manifest.with_suffix(".genesis")


def tokenizer_beside(manifest: Path) -> Path:
    return manifest.with_suffix(".tokenizer.json")


def take_run(home: Home, given: str) -> RunSource:
    """Bring the run of `--run` into the home. Raises ManifestError, SignatureError, InviteError, HomeError."""
    path = Path(os.path.expanduser(given))  # noqa: PTH111  Path.expanduser raises for an unknown ~user
    if given.lstrip().startswith(PREFIX) and not _is_file(path):
        invite = parse_invite(given)
        folder = home.run_folder(invite.run_id)
        make_folder(folder)
        write_home_file(folder / "invite", format_invite(invite.run_id, invite.addresses).encode())
        return _in_home(home, invite.run_id)
    if not _is_file(path):
        if given and _is_folder(path):
            raise ManifestError(f"the manifest {given} is a folder: {_WANTED}.")
        if ("/" in given or path.suffix) and len(given) < _MAX_PATH:
            raise ManifestError(f"the manifest {given} does not exist: {_WANTED}.")
        parse_invite(given)  # raises the sentence for it
    manifest = read_manifest(path)
    folder = home.run_folder(manifest.run_id)
    make_folder(folder)
    write_home_file(folder / "manifest", manifest.signed_bytes())
    if manifest.draft.model.tokenizer != "bytes":
        _take_file(tokenizer_beside(path), folder / "tokenizer.json")
    genesis = genesis_beside(path)
    source = _in_home(home, manifest.run_id)
    return dataclasses.replace(source, genesis=genesis.absolute()) if genesis.is_file() else source


def take_ticket(home: Home, source: RunSource, given: str, peer: PeerId) -> RunSource:
    """Bring the ticket of `--ticket` into the run's folder. Raises UsageError if it is not for `peer` in this run."""
    ticket = parse_ticket(given)
    ticket.check(source.run_id, peer, source.manifest.owner if source.manifest is not None else None)
    write_home_file(home.run_folder(source.run_id) / "ticket", ticket.word.encode())
    return dataclasses.replace(source, ticket=ticket.signature)


def resume_run(home: Home) -> RunSource | None:
    """The run that this home was on last, or None. Raises HomeError, ManifestError, SignatureError."""
    run_id = home.current_run_id()
    return None if run_id is None else _in_home(home, run_id)


def read_manifest(path: Path) -> Manifest:
    """A signed manifest file. Raises ManifestError or SignatureError with the file's name."""
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_LIMIT + 1)
    except OSError as error:
        raise ManifestError(f"cannot read the manifest {path}: {error.strerror}.") from error
    if _looks_like_draft(data):
        raise ManifestError(f"{path} is a draft, not a signed manifest: sign it with `atoll run sign {path}`.")
    try:
        return Manifest.parse(data)
    except AtollError as error:
        cause = str(error).rstrip(".")
        raise type(error)(f"{path} is no valid manifest: {cause}; ask the run's owner for the file again.") from error


def _in_home(home: Home, run_id: bytes) -> RunSource:
    folder = home.run_folder(run_id)
    manifest = read_manifest(folder / "manifest") if (folder / "manifest").exists() else None
    if manifest is not None and manifest.run_id != run_id:
        raise HomeError(f"{folder / 'manifest'} belongs to another run: give the run again with --run.")
    invited = parse_invite(_read_text(folder / "invite")).addresses if (folder / "invite").exists() else ()
    if manifest is None and not invited:
        raise UsageError(
            f"the home {home.root} has no manifest of its run: give the run again with --run MANIFEST_OR_INVITE."
        )
    own = manifest.draft.run.bootstrap if manifest is not None else ()
    addresses = tuple(dict.fromkeys((*invited, *own)))
    return RunSource(run_id, manifest, addresses, ticket=_kept_ticket(folder / "ticket"))


def _kept_ticket(path: Path) -> bytes:
    """The signature of the ticket that was taken last; whether it holds is seen where the manifest is held."""
    if not path.exists():
        return b""
    try:
        return parse_ticket(_read_text(path)).signature
    except UsageError as error:
        raise HomeError(f"{path} is damaged: delete it, and give the ticket again with --ticket.") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an invite can be longer than any file name
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_INVITE_BYTES).decode(errors="replace")
    except OSError as error:
        raise unusable(path, "read", error) from error


def _same(source: Path, target: Path) -> bool:
    """Whether `target` is an earlier copy of `source`, which keeps its time."""
    if not target.exists():
        return False
    one, other = source.stat(), target.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _looks_like_draft(data: bytes) -> bool:
    return b"[run]" in data[:65_536]


def _take_file(source: Path, target: Path) -> None:
    """Copy a neighbour of the manifest into the run's folder, whole or not at all; its digest is checked later."""
    if not source.is_file() or _same(source, target):
        return
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.copy2(source, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise unusable(target, f"copy {source} to", error) from error
