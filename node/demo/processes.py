"""Whole process trees: found before a kill, killed together, and waited for until none is left.

A daemon's children are found through the process table, not through its session, because a child may have left that.
Knows no demo; called by the swarm.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
_POLL_S = 0.05


def process_tree(pid: int) -> list[psutil.Process]:
    """The process and all its descendants, it first; empty if it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_trees(pids: Sequence[int]) -> list[psutil.Process]:
    """SIGKILL each process and everything it started; what was killed, to be awaited.

    All trees are read first, then all of it dies at once, roots first, so that no root sees its children die and
    starts new ones.
    """
    trees = [process_tree(pid) for pid in pids]
    doomed = [tree[0] for tree in trees if tree] + [child for tree in trees for child in tree[1:]]
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return doomed


async def wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until all have ended, or the timeout; those that still run. A zombie has ended."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while left := [process for process in processes if _runs(process)]:
        if asyncio.get_running_loop().time() >= deadline:
            return left
        await asyncio.sleep(_POLL_S)  # processes that are not our children give no event portably
    return []


def free_ports(count: int) -> list[int]:
    """`count` different loopback ports that nobody listens on now, outside the range of outgoing connections.

    A port of that range may be taken by somebody's connection before its daemon binds it.
    """
    low, high = _listening_range()
    ports: list[int] = []
    for port in random.sample(range(low, high), high - low):
        if len(ports) == count:
            break
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            ports.append(port)
    return ports


def _listening_range() -> tuple[int, int]:
    """Unprivileged ports below those that the kernel gives to outgoing connections, or above them."""
    try:
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split())
    except (OSError, ValueError):
        first, last = 32_768, 60_999  # Linux's default, and a subset of everybody else's choice
    below, above = (10_000, first), (last + 1, 65_535)
    return below if first - 10_000 >= 1_000 else above if above[1] - above[0] >= 1_000 else (10_000, 65_535)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
