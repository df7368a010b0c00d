"""Peers of one and of two ranks train together: the vector's order does not depend on how a peer shards its model."""

import tomlkit


def test_a_peer_of_two_ranks_joins_by_invite_and_exchanges_with_one_of_one_rank(atoll, corpus):
    senior, junior = atoll.folder / "two-ranks", atoll.folder / "one-rank"
    names = [atoll.json("id", "--home", home)["peer_id"] for home in (senior, junior)]
    manifest = sign(atoll, senior, electorate=names, rounds=2, steps=3)
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


def sign(atoll, owner, *, electorate, rounds, steps):
    """A signed run with a few settings of its own, as a person would make it."""
    draft, manifest = atoll.folder / "draft" / "run.toml", atoll.folder / "draft" / "run.manifest"
    draft.parent.mkdir()
    assert atoll.run("run", "new", "--home", owner, "--out", draft).returncode == 0
    document = tomlkit.parse(draft.read_text())
    document["run"] |= {"electorate": electorate, "rounds": rounds}
    document["inner"] |= {"steps": steps, "warmup_steps": 0}
    document["data"]["source"] = "local"
    draft.write_text(tomlkit.dumps(document))
    signed = atoll.run("run", "sign", draft, "--home", owner)
    assert signed.returncode == 0, signed.stderr
    return manifest


def invite(atoll, home):
    done = atoll.run("invite", "--home", home)
    return done.stdout.strip() if done.returncode == 0 else None
