"""A kill takes a whole tree, children that left the session included, and ports are free and stay out of the way."""

import asyncio
import socket
import subprocess
import sys

import psutil

from atoll.node.demo.processes import free_ports, kill_trees, process_tree, wait_gone

_FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_tree_dies_as_a_whole():
    with subprocess.Popen([sys.executable, "-c", _FAMILY], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert {process.pid for process in process_tree(parent.pid)} == {parent.pid, child}
        doomed = kill_trees([parent.pid])
        parent.wait()
        assert asyncio.run(wait_gone(doomed, 5)) == []
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_is_gone_is_no_error():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert process_tree(ended.pid) == []
    assert kill_trees([ended.pid]) == []
    assert asyncio.run(wait_gone([], 1)) == []


def test_ports_are_different_and_can_be_listened_on():
    ports = free_ports(8)
    assert len(set(ports)) == 8
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_what_does_not_end_in_time_is_reported():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as sleeper:
        assert [left.pid for left in asyncio.run(wait_gone(process_tree(sleeper.pid), 0.1))] == [sleeper.pid]
        sleeper.kill()
