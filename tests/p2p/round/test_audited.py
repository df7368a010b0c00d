"""What whole peers put into their logs and onto their disks, FORKs and other lineages included, holds when checked."""

from atoll.p2p.audit import Audit
from atoll.p2p.replay import replay
from atoll.p2p.run_store import read_log_file


def check(peer, manifest):
    audit = Audit(manifest)
    for entry in read_log_file(peer.folder / "log"):
        assert audit.add(entry.link), audit.problems
    assert audit.tip.id == peer.round.chain.tip.id
    assert audit.notices == []
    found = replay(peer.folder, manifest, audit.certificates, deep=True)
    assert found.problems == found.notices == []
    assert found.rounds >= 1
    return audit


def test_logs_of_peers_that_came_went_and_forked_hold(swarm):
    swarm = swarm(4, fork_after_s=40.0)
    assert swarm.run(300, until=lambda: all(p.round.chain.tip.round >= 2 for p in swarm.live()))
    gone = [swarm[0], swarm[1]]
    for peer in gone:
        swarm.kill(peer)
    assert swarm.run(2000, until=lambda: all(p.round.chain.tip.forks for p in swarm.live()))
    high = max(peer.round.chain.tip.round for peer in swarm.live())
    assert swarm.run(1000, until=lambda: all(p.round.chain.tip.round >= high + 2 for p in swarm.live()))
    for peer in gone:
        peer.boot()
    high += 4
    assert swarm.run(2000, until=lambda: all(p.round.chain.tip.round >= high for p in swarm.live()))
    swarm.check_agreement()
    for peer in swarm.peers.values():
        assert check(peer, swarm.manifest).tip.forks >= 1
