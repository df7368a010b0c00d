"""Where everything of a node lies: one home, and one folder for sockets whose paths must be short.

    <home>/identity.key        the peer's key, libp2p's format, 0600
    <home>/config.toml         the node's own settings
    <home>/port                the port that was picked at the first start
    <home>/current-run         run_id (hex) of the run that `atoll up` resumes
    <home>/daemon.lock         held by the daemon
    <home>/last-failure.json   why the last daemon ended, if it failed
    <home>/runs/<id16>/        one run: manifest, genesis, state, log, blobs, …
    <home>/trainer/<id16>/     the trainer's: token files and checkpoints of that run
    <home>/relay/              what a node without a run remembers
    <home>/logs/*.log          output of the daemon and its children
    <home>/run/                sockets, or /tmp/atoll-<uid>-<hash>/ where the home's path is too long or too odd

Knows nothing of what the files mean. Called by the command line, the supervisor and the demo.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from atoll.node.errors import HomeError

_SOCKET_PATH_BYTES = 100  # sun_path is 108 bytes on Linux, 104 on BSD and macOS
_LONGEST_SOCKET_NAME = 40
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=@")


@dataclass(frozen=True)
class Home:
    """The files of one home. Making the object touches nothing; `prepare` makes and checks the folders."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "identity.key"

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def port(self) -> Path:
        return self.root / "port"

    @property
    def current_run(self) -> Path:
        return self.root / "current-run"

    @property
    def lock(self) -> Path:
        return self.root / "daemon.lock"

    @property
    def failure(self) -> Path:
        return self.root / "last-failure.json"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def relay(self) -> Path:
        return self.root / "relay"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def runtime(self) -> Path:
        """Folder of the sockets; a function of the home's path alone, so that daemon and clients agree on it."""
        near = os.fsencode(self.root / "run")
        if len(near) + 1 + _LONGEST_SOCKET_NAME <= _SOCKET_PATH_BYTES and set(str(self.root)) <= _PLAIN:
            return self.root / "run"
        tag = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path("/tmp") / f"atoll-{os.getuid()}-{tag}"  # noqa: S108  made 0700, and refused if it is not ours

    @property
    def api_socket(self) -> Path:
        return self.runtime / "atoll.sock"

    @property
    def service_socket(self) -> Path:
        return self.runtime / "service.sock"

    @property
    def p2p_socket_prefix(self) -> str:
        return str(self.runtime / "p2p-")

    def run_folder(self, run_id: bytes) -> Path:
        return self.runs / run_id.hex()[:16]

    def trainer_folder(self, run_id: bytes) -> Path:
        return self.root / "trainer" / run_id.hex()[:16]

    def store_file(self, nonce: str) -> Path:
        """Where the ranks of one start meet; a new name each time, since it outlives a kill."""
        return self.runtime / f"store-{nonce}"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def current_run_id(self) -> bytes | None:
        """The run that `atoll up` resumes, or None. Raises HomeError if the file is damaged."""
        try:
            text = self.current_run.read_text("ascii", errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unusable(self.current_run, "read", error) from error
        try:
            run_id = bytes.fromhex(text)
        except ValueError:
            run_id = b""
        if len(run_id) != 32:
            raise HomeError(f"{self.current_run} is damaged: delete it and give the run again with --run.")
        return run_id

    def prepare(self) -> None:
        """Make the home (0700, parents too) and check that it is ours and takes files. Raises HomeError."""
        make_folder(self.root)
        own = self.root.stat()
        if own.st_uid != os.geteuid():
            raise HomeError(
                f"the home {self.root} belongs to uid {own.st_uid} and you are uid {os.geteuid()}: "
                "run as its owner, or choose another with --home."
            )
        probe = self.root / f".probe-{os.getpid()}"
        try:
            write_durably(probe, bytes(8192))
        except OSError as error:
            raise unusable(self.root, "write to", error) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        for folder in (self.runs, self.logs):
            make_folder(folder)

    def open_runtime(self) -> None:
        """An empty folder for sockets. To be called with the lock held. Raises HomeError."""
        make_folder(self.runtime)
        found = self.runtime.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise HomeError(f"{self.runtime} is not a folder of yours, and the sockets belong there: remove it.")
        self.runtime.chmod(0o700)
        for entry in self.runtime.iterdir():
            entry.unlink()

    def close_runtime(self) -> None:
        shutil.rmtree(self.runtime, ignore_errors=True)


def resolve_home(flag: str | None) -> Home:
    """The home of a command: --home, $ATOLL_HOME, $XDG_DATA_HOME/atoll, ~/.local/share/atoll. Raises HomeError."""
    named = flag or os.environ.get("ATOLL_HOME")
    if named:
        return Home(Path(os.path.abspath(os.path.expanduser(named))))  # noqa: PTH100, PTH111  links stay as they are
    data = os.environ.get("XDG_DATA_HOME")
    if data and os.path.isabs(data):  # noqa: PTH117  the XDG specification: relative ones are ignored
        return Home(Path(data) / "atoll")
    user = os.environ.get("HOME")
    if not user or not os.path.isabs(user):  # noqa: PTH117
        raise HomeError("HOME is not set, so there is no place for this node's files: name one with --home FOLDER.")
    return Home(Path(user) / ".local" / "share" / "atoll")


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, each 0700. Raises HomeError with the path and the cause."""
    try:
        missing = []
        step = path
        while not step.exists():
            missing.append(step)
            step = step.parent
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "there is a file of that name", str(path))
    except OSError as error:
        raise unusable(path, "make the folder", error) from error


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file as a whole or not at all; it is on disk when this returns. Raises OSError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def write_home_file(path: Path, data: bytes) -> None:
    """`write_durably` inside a home. Raises HomeError with the path and the cause."""
    try:
        write_durably(path, data)
    except OSError as error:
        raise unusable(path, "write", error) from error


_REMEDIES = {
    errno.EROFS: "choose a writable place with --home",
    errno.EACCES: "change its permissions, or choose another place with --home",
    errno.EPERM: "change its permissions, or choose another place with --home",
    errno.ENOSPC: "free some space, or choose another place with --home",
    errno.EDQUOT: "free some space, or choose another place with --home",
}


def unusable(path: Path, verb: str, error: OSError) -> HomeError:
    remedy = _REMEDIES.get(error.errno or 0, "choose another place with --home")
    return HomeError(f"cannot {verb} {path}: {error.strerror or error}; {remedy}.")
