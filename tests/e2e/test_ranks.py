"""Peers of one and of two ranks train together: the vector's order does not depend on how a peer shards its model.

And two real peers arrive where a plain loop in one process arrives.
"""

import numpy as np

from atoll.protocol.identity import parse_peer
from atoll.protocol.manifest import Manifest


def test_a_peer_of_two_ranks_joins_by_invite_and_exchanges_with_one_of_one_rank(atoll, corpus):
    senior, junior = atoll.folder / "two-ranks", atoll.folder / "one-rank"
    names = [atoll.json("id", "--home", home)["peer_id"] for home in (senior, junior)]
    manifest = atoll.sign(senior, run={"electorate": names, "rounds": 2}, inner={"steps": 3, "warmup_steps": 0})
    common = ("--loopback", "--threads", 1, "--data", corpus)

    # The junior voter alone is no quorum, so it waits; the senior one has the invite only, and fetches the rest.
    atoll.start("up", "--run", manifest, "--home", junior, "--ranks", 1, *common)
    atoll.wait("the junior peer can be invited to", lambda: invite(atoll, junior), 60)
    atoll.start("up", "--run", invite(atoll, junior), "--home", senior, "--ranks", 2, *common)

    def finished():
        found = [atoll.status(home) for home in (senior, junior)]
        return found if all(status["round"] == 2 and status["state"] == "FINISHED" for status in found) else None

    one, other = atoll.wait("both have done two rounds", finished, 150)
    assert one["state_digest"] == other["state_digest"]
    for row in atoll.json("rounds", "--home", senior)["rounds"]:
        assert {contributor["peer_id"] for contributor in row["contributors"]} == set(names)
    for home in (senior, junior):
        assert atoll.run("down", "--home", home).returncode == 0


def invite(atoll, home):
    done = atoll.run("invite", "--home", home)
    return done.stdout.strip() if done.returncode == 0 else None


def test_two_real_fp32_peers_end_where_a_plain_single_process_loop_ends(atoll, corpus, plain_reference):
    homes = [atoll.folder / "peer-1", atoll.folder / "peer-2"]
    names = [atoll.json("id", "--home", home)["peer_id"] for home in homes]
    codecs = {"contribution_codec": "fp32", "gather_codec": "fp32"}
    file = atoll.sign(homes[0], run={"electorate": names, "rounds": 2}, inner={"steps": 3}, exchange=codecs)
    common = ("--loopback", "--threads", 1, "--data", corpus)
    atoll.start("up", "--run", file, "--home", homes[0], *common)
    word = atoll.wait("the first peer can be invited to", lambda: invite(atoll, homes[0]), 60)
    atoll.start("up", "--run", word, "--home", homes[1], *common)

    def finished():
        found = [atoll.status(home) for home in homes]
        return found if all(status["state"] == "FINISHED" for status in found) else None

    one, other = atoll.wait("both have done two rounds", finished, 150)
    assert one["state_digest"] == other["state_digest"]
    last = atoll.json("rounds", "--home", homes[0])["rounds"][-1]["certificate"]
    for home in homes:
        assert atoll.run("down", "--home", home).returncode == 0
    [state] = homes[0].glob(f"runs/*/state/*-{last}")
    draft = Manifest.parse(file.read_bytes()).draft
    peers = [parse_peer(name) for name in names]
    expected = plain_reference(draft, file.with_suffix(".genesis"), corpus, peers, atoll.folder)
    assert np.abs(expected - np.fromfile(file.with_suffix(".genesis"), "<f4")).max() > 1e-3
    assert np.abs(np.fromfile(state, "<f4") - expected).max() < 1e-6
