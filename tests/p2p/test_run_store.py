"""What a run keeps on disk survives being torn anywhere, and tells the run's story."""

import os
import resource

import numpy as np
import pytest

from atoll.p2p import run_store
from atoll.p2p.run_store import LogEntry, RunStore
from atoll.protocol.certificate import (
    FIRST_JOURNAL,
    Certificate,
    Contribution,
    PartResult,
    Value,
    Vote,
    Voter,
    bitmap,
)
from atoll.protocol.digest import ZERO_DIGEST, content_digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.fork import Fork, LastPromise, Rank
from atoll.protocol.identity import Identity, peer_name

ME, YOU = Identity(b"\1" * 32), Identity(b"\2" * 32)


def certificate(number, parent, *, empty=False):
    made = () if empty else (Contribution(ME.peer_id, bytes(32), 10),)
    part = PartResult(b"", ZERO_DIGEST) if empty else PartResult(bitmap({0}, 1), bytes(32))
    electorate = (Voter(ME.peer_id, FIRST_JOURNAL), Voter(YOU.peer_id, FIRST_JOURNAL))
    value = Value(parent, number, 10 * number, made, (part,), b"\1", (), electorate, bytes([number]) * 32)
    return Certificate(value, 0, (Vote.cast(ME, FIRST_JOURNAL, 0, value),))


def fork(parent, nonce=b"n" * 16):
    promise = LastPromise.sign(ME, parent, nonce, Rank.VOTERS, FIRST_JOURNAL, None)
    return Fork(parent, nonce, Rank.VOTERS, (promise,), None)


def entry(link):
    return LogEntry(link, 1.5, 100, 200, ((YOU.peer_id, "exchange"),))


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """For tests of many small files: what is in the page cache is what they read back."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def filled(store):
    parent = bytes(32)
    for number in (1, 2, 3):
        store.append(entry(certificate(number, parent)))
        parent = store.log()[-1].link.id
    return store


@pytest.fixture
def forked(store):
    """Round 1, a FORK of a FORK, rounds 2 (an empty one) and 3, and a FORK at the end."""
    one = certificate(1, bytes(32))
    left = fork(one.id)
    again = fork(left.id, b"m" * 16)
    two = certificate(2, again.id, empty=True)
    three = certificate(3, two.id)
    links = [one, left, again, two, three, fork(three.id)]
    for link in links:
        store.append(entry(link))
    return store, links


def rounds(entries):
    return [e.certificate.value.round for e in entries]


def test_the_log_comes_back_whole(forked):
    store, links = forked
    assert store.log() == [entry(link) for link in links]
    assert run_store.read_log_file(store.folder / "log") == store.log()
    assert [e.certificate is None for e in store.log()] == [False, True, True, False, False, True]


def test_the_story_has_a_row_per_certified_round(filled):
    rows = run_store.read_rounds(filled.folder)
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert rows[2]["parent"] == rows[1]["certificate"]
    me, you = peer_name(ME.peer_id), peer_name(YOU.peer_id)
    assert rows[0] == {
        "round": 1, "parent": "00" * 32, "certificate": filled.log()[0].link.id.hex(), "state_digest": "01" * 32,
        "contributors": [{"peer_id": me, "tokens": 10}], "dropped": [{"peer_id": you, "phase": "exchange"}],
        "voters": [me], "electorate": [me, you], "empty": False, "seconds": 1.5, "bytes_up": 100, "bytes_down": 200,
        "ballot": 0, "tokens": 10, "lineage": None, "forks": 0, "fork": None,
    }  # fmt: skip
    assert rows == run_store.story(filled.log())


def test_the_story_tells_which_rounds_lie_behind_a_fork(forked):
    store, links = forked
    one, two, three = run_store.read_rounds(store.folder)
    name = links[2].id.hex()
    assert (one["lineage"], one["forks"], one["fork"]) == (None, 0, None)
    assert (two["lineage"], two["forks"]) == (name, 2)
    assert two["fork"] == {"id": name, "rank": 1, "survivors": [peer_name(ME.peer_id)]}
    assert (three["lineage"], three["forks"], three["fork"]) == (name, 2, None)
    assert [row["empty"] for row in (one, two, three)] == [False, True, False]


def test_the_summary_is_of_the_last_certificate(forked, tmp_path):
    assert run_store.read_summary(forked[0].folder) == {"round": 3, "tokens": 30, "state_digest": "03" * 32}
    genesis = {"round": 0, "tokens": 0, "state_digest": None}
    assert run_store.read_summary(tmp_path / "nowhere") == genesis
    assert run_store.read_rounds(tmp_path / "nowhere") == []
    forked[0].rewrite([entry(fork(bytes(32)))])
    assert run_store.read_summary(forked[0].folder) == genesis


def test_a_log_torn_at_any_byte_keeps_every_whole_entry_and_takes_new_ones(filled, quick):
    path = filled.folder / "log"
    whole = path.read_bytes()
    size = len(whole) // 3
    for cut in range(0, len(whole), 11):
        path.write_bytes(whole[:cut])
        kept = filled.log()
        assert len(kept) == cut // size
        filled.append(entry(certificate(9, bytes(32))))
        assert rounds(filled.log()) == [*rounds(kept), 9]


def test_a_flipped_bit_ends_the_log_before_its_entry(filled, quick):
    path = filled.folder / "log"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        bent = bytearray(whole)
        bent[at] ^= 4
        path.write_bytes(bent)
        assert len(filled.log()) == at // (len(whole) // 3)


def test_a_log_from_elsewhere_is_read_whole_or_its_fault_named_with_its_place(filled, tmp_path):
    path, copy = filled.folder / "log", tmp_path / "copy"
    whole = path.read_bytes()
    size = len(whole) // 3
    for change, at, fault in (
        (whole[:-1], 2 * size, "torn"),
        (whole[: size + 5], size, "torn"),
        (whole[: size + 40] + b"\xff" + whole[size + 41 :], size, "damaged"),
        (whole + b"\xff" * 16, 3 * size, "is the most"),
    ):
        copy.write_bytes(change)
        with pytest.raises(MalformedError, match=f"byte {at} .*{fault}"):
            run_store.read_log_file(copy)
        assert copy.read_bytes() == change
    with pytest.raises(MalformedError, match="No such file"):
        run_store.read_log_file(tmp_path / "none")


def test_an_intact_entry_that_is_no_link_is_told_and_not_cut_off(filled):
    path = filled.folder / "log"
    for body in (b"\x93\1\2\3", b"", b"\xc1"):
        path.write_bytes(len(body).to_bytes(8, "little") + content_digest(body)[:8] + body)
        whole = path.read_bytes()
        for read in (filled.log, lambda: run_store.read_log_file(path)):
            with pytest.raises(MalformedError, match="byte 0 is intact but no link"):
                read()
        assert path.read_bytes() == whole


def test_on_a_full_disk_an_entry_is_in_the_log_whole_or_not_at_all(filled):
    path = filled.folder / "log"
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, hard))
    try:
        with pytest.raises(OSError):
            filled.append(entry(certificate(4, bytes(32))))
        with pytest.raises(OSError):
            filled.rewrite([entry(certificate(4, bytes(32)))] * 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    assert not list(filled.folder.glob("*.partial"))


def test_the_log_is_on_the_disk_before_anybody_forgets_votes_by_it(filled, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    filled.log()
    assert (filled.folder / "log").stat().st_ino in synced


def test_rewriting_replaces_the_log(filled):
    first = filled.log()[:1]
    filled.rewrite(first)
    assert filled.log() == first
    filled.append(entry(certificate(2, first[0].link.id)))
    assert rounds(filled.log()) == [1, 2]


def name(number):
    return number.to_bytes(32, "big")


def states(store):
    return sorted(int.from_bytes(key, "big") for key in store.saved_states())


def save(store, number, retain, fill=0):
    store.save_state(name(number), number, [np.full(3, fill, np.float32)], retain)


def test_a_state_comes_back_as_it_was_saved(store):
    store.save_state(name(7), 7, [np.full(10, 3, np.float32), np.zeros(2, np.float32)], 64)
    assert store.saved_states()[name(7)].read_bytes() == np.full(10, 3, "<f4").tobytes() + bytes(8)


@pytest.mark.parametrize(("retain", "every"), [(2, 1), (3, 1), (5, 1), (16, 1), (16, 3), (16, 7), (40, 20), (17, 5)])
def test_a_state_lies_between_half_and_all_of_what_is_retained_behind_the_tip(store, quick, retain, every):
    for tip in range(1, 5 * retain):
        if tip % every == 0:
            save(store, tip, retain)
            assert len(states(store)) <= 5
            assert set(states(store)) >= {number for number in (tip, tip - every) if number > 0}
        if tip >= retain + every:
            assert any(retain // 2 <= tip - number <= retain for number in states(store)), (tip, states(store))


def test_states_of_a_lineage_that_was_left_go(store):
    for number in range(1, 11):
        save(store, number, 8)
    assert states(store) == [5, 9, 10]
    other = b"\xff" * 32
    store.save_state(other, 9, [np.ones(3, np.float32)], 8)
    assert set(store.saved_states()) == {name(5), other}
    store.keep_states([name(1), other])
    assert set(store.saved_states()) == {other}


def test_saving_a_state_again_and_a_stale_half_of_one_do_no_harm(store):
    (store.states / f"1-{name(1).hex()}.partial").write_bytes(b"half")
    save(store, 2, 8, 1)
    save(store, 2, 8, 1)
    assert [path.name for path in store.states.iterdir()] == [f"2-{name(2).hex()}"]


def test_known_peers_come_back_or_count_as_none(store):
    assert store.peers() == []
    store.save_peers(["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2"])
    assert store.peers() == ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2"]
    path = store.folder / "known_peers"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert store.peers() == []
