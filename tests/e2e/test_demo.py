"""`atoll demo` on real daemons: it trains, survives kills, ends by Ctrl-C, and refuses what cannot work."""

import json

import pytest

KEYS = {
    "peers",
    "rounds",
    "killed",
    "initial_loss",
    "final_loss",
    "tokens",
    "bytes_sent",
    "reduction_vs_ddp",
    "state_digests",
    "seconds",
}
SHORT = ("--rounds", 2, "--inner-steps", 3)


def test_two_peers_learn_and_end_in_one_state_and_their_homes_stay(atoll, corpus):
    home = atoll.folder / "demo"
    result = atoll.json("demo", "--peers", 2, *SHORT, "--data", corpus, "--home", home, timeout=150)
    assert set(result) == KEYS
    assert (result["peers"], result["rounds"], result["killed"]) == (2, 2, 0)
    assert len(result["state_digests"]) == 2
    assert len(set(result["state_digests"].values())) == 1
    assert result["final_loss"] < result["initial_loss"]
    assert result["reduction_vs_ddp"] > 1
    assert 0.9 * 2 * 2 * 3 * 2048 < result["tokens"] <= 2 * 2 * 3 * 2048  # the end of a small corpus is padded
    for peer in (home / "peer-1", home / "peer-2"):
        rounds = atoll.json("rounds", "--home", peer)["rounds"]
        assert [row["round"] for row in rounds] == [1, 2]
        assert rounds[-1]["state_digest"] == result["state_digests"][atoll.json("id", "--home", peer)["peer_id"]]
        assert {row["peer_id"] for row in rounds[-1]["contributors"]} == set(result["state_digests"])


def test_the_rest_finish_when_a_peer_and_leader_is_killed_in_an_exchange(atoll, corpus):
    done = atoll.run("demo", "--peers", 3, "--kill", 1, *SHORT, "--data", corpus, "--json", timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the ballot's leader, in the exchange of round 1." in done.stderr
    result = json.loads(done.stdout)
    assert (result["rounds"], result["killed"]) == (2, 1)
    assert len(result["state_digests"]) == 2
    assert len(set(result["state_digests"].values())) == 1
    assert result["final_loss"] < result["initial_loss"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--peers", 0), 2, "--peers is 0"),
        (("--peers", 4, "--kill", 9), 9, "no quorum"),
        (("--data", "no-such-file"), 7, "no-such-file"),
        (("--peers", "many"), 2, "many"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(atoll, arguments, code, words):
    done = atoll.run("demo", *arguments, timeout=20)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_home_with_peers_in_it_is_left_alone(atoll):
    (atoll.folder / "demo" / "peer-1").mkdir(parents=True)
    done = atoll.run("demo", "--home", atoll.folder / "demo", timeout=20)
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert list((atoll.folder / "demo").iterdir()) == [atoll.folder / "demo" / "peer-1"]


def test_ctrl_c_ends_a_demo_that_is_just_starting(atoll, corpus):
    process = atoll.start("demo", "--peers", 2, "--rounds", 0, "--data", corpus)
    atoll.wait("something is said", lambda: "making keys" in atoll.output(), 20)
    assert atoll.interrupt(process) < 10
    assert process.returncode == 130
