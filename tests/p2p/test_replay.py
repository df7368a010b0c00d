"""States and results on a disk are held against the log, and the disk is left as it is."""

import pytest

from atoll.p2p.replay import replay


@pytest.fixture
def peer(run, gradient):
    """Five rounds with real averages and momentum, a FORK in between; the states of rounds 2 and 4 are saved."""
    peer = run()
    peer.commit(peer.certify(gradient(1), gradient(2)))
    peer.commit(peer.certify(gradient(3)), save=True)
    peer.fork()
    peer.commit(peer.certify(gradient(4), gradient(5)))
    peer.commit(peer.certify(), save=True)
    peer.commit(peer.certify(gradient(6)))
    return peer


def check(peer, *, deep=False):
    return replay(peer.folder, peer.manifest, peer.lineage(), deep=deep)


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def path_of(peer, at, part=0):
    digest = peer.lineage()[at].value.parts[part].digest
    return next(place.path for place in peer.blobs._places[digest])


def test_the_last_rounds_are_replayed_from_the_newest_state_and_all_of_them_if_asked(peer):
    before = everything(peer.folder)
    found = check(peer)
    assert (found.states, found.first, found.last, found.rounds) == (3, 5, 5, 1)
    deep = check(peer, deep=True)
    assert (deep.first, deep.last, deep.rounds) == (1, 5, 5)
    assert found.problems == deep.problems == found.notices == deep.notices == []
    assert everything(peer.folder) == before


def test_the_state_of_the_end_alone_is_held_against_its_digest(peer):
    peer.save()
    found = check(peer)
    assert (found.states, found.first, found.last) == (4, 5, 5), "from the newest before the end"


def test_where_results_are_gone_the_replay_begins_behind_them(peer):
    path_of(peer, 2).unlink()
    assert (check(peer, deep=True).first, check(peer).first) == (5, 5)
    path_of(peer, 4).unlink()
    found = check(peer)
    assert (found.rounds, found.problems) == (0, [])
    assert "nothing was replayed" in found.notices[0]


def test_a_damaged_result_or_state_is_a_problem_and_stays_where_it_is(peer):
    result = path_of(peer, 4, 2)
    result.write_bytes(b"\1" + result.read_bytes()[1:])
    found = check(peer)
    assert found.rounds == 0
    assert "round 5: the results on this disk do not lead to its state" in found.problems[0]
    saved = sorted(peer.store.saved_states().values())
    saved[0].write_bytes(b"\1" + saved[0].read_bytes()[1:])
    saved[1].write_bytes(b"short")
    peer.store.genesis.write_bytes(b"\1" + peer.store.genesis.read_bytes()[1:])
    before = everything(peer.folder)
    found = check(peer)
    assert [problem.split(" on this disk")[0] for problem in found.problems] == [
        "the state of genesis", "the state of round 2", "the state of round 4"]
    assert found.states == 0
    assert everything(peer.folder) == before


def test_a_result_that_leads_elsewhere_is_a_problem(peer, with_value):
    wrong = with_value(peer.lineage()[4], state=bytes(32))
    found = replay(peer.folder, peer.manifest, [*peer.lineage()[:4], wrong])
    assert "do not lead to its state" in found.problems[0]


def test_a_state_of_another_lineage_is_a_notice(peer):
    found = replay(peer.folder, peer.manifest, peer.lineage()[:3])
    assert found.problems == []
    assert "this log does not lead to" in found.notices[0]
    assert (found.first, found.last) == (3, 3)


def test_a_folder_with_nothing_in_it_is_no_problem(peer, tmp_path):
    (tmp_path / "empty").mkdir()
    found = replay(tmp_path / "empty", peer.manifest, peer.lineage())
    assert (found.states, found.rounds, found.problems) == (0, 0, [])
    assert list((tmp_path / "empty").iterdir()) == []
    assert replay(tmp_path / "empty", peer.manifest, []).notices == []
