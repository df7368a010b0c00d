"""Two halves of a swarm cut apart by a router that drops what goes between them, for several rounds, then rejoined.

Each half lives in a network namespace of its own; a third one routes. Dropped packets are not answered, as by a
firewall: nobody is told that the others cannot be reached.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid

import pytest

SUBNETS = ("10.213.1", "10.213.2")


class Halves:
    """Two namespaces and a router between them. `close` removes all of it, with whatever still runs inside."""

    def __init__(self):
        tag = uuid.uuid4().hex[:6]
        self.names, self._router = (f"atoll-a-{tag}", f"atoll-b-{tag}"), f"atoll-r-{tag}"

    def open(self):
        for name in (*self.names, self._router):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        self.inside(self._router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for name, subnet in zip(self.names, SUBNETS, strict=True):
            near = f"r-{name[6]}"
            ip("-n", self._router, "link", "add", near, "type", "veth", "peer", "name", "up0", "netns", name)
            ip("-n", self._router, "addr", "add", f"{subnet}.1/24", "dev", near)
            ip("-n", self._router, "link", "set", near, "up")
            ip("-n", name, "addr", "add", f"{subnet}.2/24", "dev", "up0")
            ip("-n", name, "link", "set", "up0", "up")
            ip("-n", name, "route", "add", "default", "via", f"{subnet}.1")

    def place(self, half):
        """Host and command prefix of a peer in this half."""
        return f"{SUBNETS[half]}.2", ("ip", "netns", "exec", self.names[half])

    def cut(self):
        for subnet in SUBNETS:
            ip("-n", self._router, "route", "add", "blackhole", f"{subnet}.0/25")

    def join(self):
        for subnet in SUBNETS:
            ip("-n", self._router, "route", "del", "blackhole", f"{subnet}.0/25")

    def close(self):
        for name in (*self.names, self._router):
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in map(int, pids.split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    @staticmethod
    def inside(name, *command):
        subprocess.run(["ip", "netns", "exec", name, *command], check=True, capture_output=True)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def halves():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the `ip` command")
    made = Halves()
    try:
        try:
            made.open()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr}")
        yield made
    finally:
        made.close()


@pytest.mark.timeout(420)
def test_two_halves_that_were_cut_apart_end_in_the_lineage_of_the_one_with_the_quorum(halves, swarm_of):
    swarm = swarm_of([halves.place(half) for half in (0, 0, 0, 1, 1)])
    majority, minority = swarm.peers[:3], swarm.peers[3:]
    pids = {peer.index: peer.pid for peer in swarm.peers}
    services = {peer.index: peer.status["restarts"] for peer in swarm.peers}
    forks = swarm.peers[0].status["forks"]
    shared = min(peer.round for peer in swarm.peers)
    assert all(peer.status["live_peers"] == 4 for peer in swarm.peers)

    halves.cut()
    cut_at = time.monotonic()
    swarm.wait("the minority certifies in a lineage of its own",
               lambda: min(p.status.get("forks", 0) for p in minority) > forks and grown(minority) >= 2)
    print(f"forked and certified two rounds after {time.monotonic() - cut_at:.1f} s")
    at = max(peer.round for peer in majority)
    swarm.wait("the majority goes on", lambda: min(peer.round for peer in majority) >= at + 2)
    assert all(peer.status["forks"] == forks for peer in majority)
    winner, loser = swarm.agree(*majority), swarm.agree(*minority)
    [branch] = [row for row in loser if row["fork"]][forks:]
    assert branch["round"] > shared - 1
    assert set(branch["fork"]["survivors"]) == {peer.name for peer in minority}
    assert loser[-1]["lineage"] == branch["fork"]["id"]
    same = [one["certificate"] == other["certificate"] for one, other in zip(winner, loser, strict=False)]
    assert same == [row["round"] < branch["round"] for row in loser[:len(same)]]

    halves.join()
    joined_at = time.monotonic()
    swarm.wait("one lineage", lambda: all(peer.status.get("forks") == forks for peer in swarm.peers))
    print(f"one lineage {time.monotonic() - joined_at:.1f} s after the rejoin")
    swarm.wait("everybody votes again", swarm.whole)
    print(f"one electorate {time.monotonic() - joined_at:.1f} s after the rejoin")
    final = swarm.agree()
    assert [row["certificate"] for row in final[:len(winner)]] == [row["certificate"] for row in winner]
    assert final[-1]["forks"] == forks
    assert {row["peer_id"] for row in final[-1]["contributors"]} == {peer.name for peer in swarm.peers}
    assert {peer.index: peer.pid for peer in swarm.peers} == pids
    assert {peer.index: peer.status["restarts"] for peer in swarm.peers} == services
    for peer in minority:
        assert any("lineage_changed" in warning for warning in peer.status["warnings"])


def grown(peers):
    """Certified rounds behind the last FORK that all of these peers have."""
    told = [peer.rounds() for peer in peers]
    return min(sum(1 for row in rows if row["forks"] == rows[-1]["forks"]) for rows in told)
