"""One daemon per home: by the kernel's lock where there is one, by pid where there is none."""

import errno
import os
import subprocess
import sys

import psutil
import pytest

from atoll.node.errors import AlreadyRunningError
from atoll.node.lock import NO_LOCKS_WARNING, DaemonLock, read_holder

HOLD = """
import sys
from pathlib import Path
from atoll.node.lock import DaemonLock
from atoll.node.paths import Home
with DaemonLock(Home(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(home):
    command = [sys.executable, "-c", HOLD, str(home.root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def no_locks(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_live_holder_is_named_and_a_killed_one_leaves_no_lock(home, holder):
    with pytest.raises(AlreadyRunningError, match=f"pid {holder.pid}"):
        DaemonLock(home)
    assert read_holder(home) == holder.pid
    holder.kill()
    holder.wait()
    assert read_holder(home) is None
    with DaemonLock(home) as lock:
        assert lock.warning is None
        assert read_holder(home) == os.getpid()
    assert read_holder(home) is None


def test_without_locks_the_pid_decides_and_the_mode_has_a_name(home, holder, monkeypatch):
    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(AlreadyRunningError):
        DaemonLock(home)
    holder.kill()
    holder.wait()
    with DaemonLock(home) as lock:
        assert lock.warning == NO_LOCKS_WARNING


@pytest.mark.parametrize("content", [
    b"", b"garbage", b"1 2 3", b"\xff\xfe", b"-5 1.0", b"999999999 1.0", b"0 0", str(os.getpid()).encode() + b" 1.0",
])
def test_a_stale_or_damaged_lock_file_holds_nobody_up(home, monkeypatch, content):
    monkeypatch.setattr("fcntl.flock", no_locks)
    home.lock.write_bytes(content)
    assert read_holder(home) is None
    with DaemonLock(home):
        assert read_holder(home) == os.getpid()


def test_a_process_that_got_the_pid_later_is_not_taken_for_the_holder(home):
    home.lock.write_text(f"{os.getpid()} {psutil.Process().create_time() - 100}")
    assert read_holder(home) is None
