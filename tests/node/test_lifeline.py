"""A child never outlives its supervisor, whatever kills that, and hears when it is asked to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

PARENT = """
import subprocess, sys, os
from atoll.node import lifeline
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, process_group=0)
child.stdin.write(lifeline.frame({"parent_pid": os.getpid(), "secret": "s3cret"}))
child.stdin.flush()
print(child.pid, flush=True)
child.wait()
"""
CHILD = """
import signal, sys, time
from atoll.node import lifeline
lifeline.attach()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lifeline.watch(lambda: None)
time.sleep(60)
"""


def start_family(child):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, child], stdout=subprocess.PIPE, text=True)
    return parent, psutil.Process(int(parent.stdout.readline()))


def ends(process, timeout_s=10):
    with contextlib.suppress(psutil.NoSuchProcess):
        deadline = time.monotonic() + timeout_s
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                process.kill()
                return False
            time.sleep(0.01)
    return True


@pytest.mark.parametrize("without_kernel", [False, True], ids=["death-signal", "end-of-input"])
@pytest.mark.parametrize("settle_s", [0.0, 0.5], ids=["at-once", "settled"])
def test_a_killed_parent_takes_its_child_along(without_kernel, settle_s):
    child = CHILD.replace("lifeline.attach()", "sys.platform = 'other'; lifeline.attach()") if without_kernel else CHILD
    parent, process = start_family(child)
    time.sleep(settle_s)  # the moment of the kill is what is tried here
    started = time.monotonic()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert ends(process)
    assert time.monotonic() - started < 10


def test_a_child_that_has_another_parent_already_does_not_stay():
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE)
    from atoll.node import lifeline

    process.stdin.write(lifeline.frame({"parent_pid": os.getpid() + 1}))
    process.stdin.flush()
    assert process.wait(10) == lifeline.ORPHANED
    process.stdin.close()


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1"], ids=repr)
def test_a_child_that_is_started_by_hand_says_so(data):
    code = "import sys; from atoll.node.child_main import run_child; sys.exit(run_child('x', print))"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False, timeout=30)
    assert b"not by hand" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode != 0


def test_settings_are_not_in_sight():
    parent, process = start_family(CHILD)
    assert "s3cret" not in " ".join(process.cmdline())
    assert "s3cret" not in str(process.environ())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert ends(process)
