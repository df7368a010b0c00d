"""A voter's memory: whatever happens to the file, nothing is forgotten under the same journal id."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest

from atoll.p2p import durable, journal
from atoll.p2p.journal import Journal, OwnContribution
from atoll.p2p.round.synod import Acceptor
from atoll.protocol.certificate import FIRST_JOURNAL, Contribution, PartResult, Value, Voter, bitmap
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import Identity

ME = Identity(b"\1" * 32).peer_id
P, Q, R = (bytes([n]) * 32 for n in (1, 2, 3))


def value(parent, number=1):
    made = (Contribution(ME, bytes(32), 10),)
    parts = (PartResult(bitmap({0}, 1), bytes(32)),)
    return Value(parent, number, 10, made, parts, b"\1", (), (Voter(ME, FIRST_JOURNAL),), bytes([number]) * 32)


def own(name):
    return OwnContribution(Contribution(ME, name, 7, b"j" * 16), (P, name))


STEPS = (
    (P, Acceptor(2)),
    (P, Acceptor(2, (2, value(P)))),
    (P, own(Q)),
    (Q, Acceptor(1, None, left=True)),
    (Q, own(R)),
    (P, Acceptor(5, (2, value(P)))),
)


def save(kept, key, item):
    (kept.save_acceptor if isinstance(item, Acceptor) else kept.save_contribution)(key, item)


def memory(kept):
    return dict(kept.acceptors), dict(kept.contributions)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def quick(monkeypatch):
    """For tests of many files: what is in the page cache is what they read back."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def written(path):
    """(bytes of the file, its id, [(bytes the file has from then on, memory)] after each save)."""
    kept = Journal.open(path)
    history = [(path.stat().st_size, memory(kept))]
    for key, item in STEPS:
        save(kept, key, item)
        history.append((path.stat().st_size, memory(kept)))
    kept.close()
    return path.read_bytes(), kept.id, history


def reopen(path):
    kept = Journal.open(path)
    try:
        return kept.id, kept.lost, memory(kept)
    finally:
        kept.close()


def test_everything_saved_comes_back_under_the_same_id(path, written):
    _, name, history = written
    assert len(name) == 16
    assert reopen(path) == (name, False, history[-1][1])


def test_a_journal_that_never_was_or_was_lost_has_a_new_id(path, written, tmp_path):
    path.unlink()
    name, lost, found = reopen(path)
    assert name != written[1]
    assert not lost
    assert found == ({}, {})
    assert reopen(path)[0] == name
    assert reopen(tmp_path / "other")[0] != name


def test_torn_at_any_byte_it_keeps_every_complete_record_or_gives_up_its_id(path, written, quick):
    whole, name, history = written
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = Journal.open(path)
        complete = [found for size, found in history if size <= cut]
        if not complete:  # within the header, which is written before the file has its name: no crash does this
            assert kept.lost
            assert kept.id != name
        else:
            assert (kept.id, kept.lost, memory(kept)) == (name, False, complete[-1])
            kept.save_acceptor(R, Acceptor(9))
        before = memory(kept)
        kept.close()
        assert reopen(path) == (kept.id, False, before)


def test_with_any_byte_changed_it_never_keeps_its_id_and_is_set_aside(path, written, quick, tmp_path):
    whole, name, _ = written
    for at in range(len(whole)):
        bent = bytearray(whole)
        bent[at] ^= 1 << at % 8
        path.write_bytes(bent)
        found, lost, remembered = reopen(path)
        assert found != name
        assert lost
        assert remembered == ({}, {})
        aside = tmp_path / "journal.damaged-1"
        assert aside.read_bytes() == bent
        aside.unlink()


def test_damaged_files_do_not_replace_each_other(path, tmp_path):
    for text in (b"one", b"two"):
        path.write_bytes(text)
        assert reopen(path)[1]
    assert [(tmp_path / f"journal.damaged-{n}").read_bytes() for n in (1, 2)] == [b"one", b"two"]


@pytest.mark.parametrize("tail", [b"\0" * 64, b"\xff" * 64])
def test_garbage_behind_the_records_costs_the_id(path, written, tail):
    path.write_bytes(written[0] + tail)
    assert reopen(path)[:2] != (written[1], False)


def test_a_record_moved_left_out_or_from_another_journal_is_not_believed(path, written, tmp_path):
    whole, name, history = written
    ends = [size for size, _ in history]
    path.write_bytes(whole[: ends[1]] + whole[ends[2] :])
    assert reopen(path)[0] != name
    path.write_bytes(whole + whole[ends[-2] :])
    assert reopen(path)[0] != name
    other = Journal.open(tmp_path / "other")
    other.save_acceptor(*STEPS[0])
    other.close()
    path.write_bytes(whole[: ends[0]] + (tmp_path / "other").read_bytes()[ends[0] :])
    assert reopen(path)[0] != name


def test_a_length_beyond_bounds_is_damage_even_with_a_check_that_fits(path, written, monkeypatch):
    monkeypatch.setattr(journal, "RECORD_LIMIT", 100)
    assert reopen(path)[0] != written[1]


def test_what_could_not_be_read_back_is_not_written(path, monkeypatch):
    kept = Journal.open(path)
    monkeypatch.setattr(journal, "RECORD_LIMIT", 100)
    with pytest.raises(MalformedError, match="at most 100"):
        kept.save_acceptor(*STEPS[1])
    kept.close()
    assert reopen(path) == (kept.id, False, ({}, {}))


@pytest.mark.parametrize("room", [0, 1, 30, 100])
def test_on_a_full_disk_the_half_record_is_taken_back_and_the_error_told(path, room):
    kept = Journal.open(path)
    kept.save_acceptor(P, Acceptor(1))
    size, before = path.stat().st_size, memory(kept)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
    try:
        with pytest.raises(OSError):
            kept.save_acceptor(P, Acceptor(1, (1, value(P))))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == size
    assert memory(kept) == before
    kept.save_acceptor(P, Acceptor(7))
    kept.close()
    assert reopen(path) == (kept.id, False, ({P: Acceptor(7)}, {}))


def test_a_half_record_that_could_not_be_taken_back_goes_before_the_next_is_written(path, monkeypatch):
    kept = Journal.open(path)

    def fail(*_):
        raise OSError(5, "input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        broken.setattr(os, "ftruncate", fail)
        for _ in range(2):
            with pytest.raises(OSError, match="input/output"):
                kept.save_acceptor(P, Acceptor(3, (3, value(P))))
    assert kept.acceptors == {}
    kept.save_acceptor(P, Acceptor(4))
    kept.close()
    assert reopen(path) == (kept.id, False, ({P: Acceptor(4)}, {}))


def test_a_save_is_on_the_disk_before_it_returns(path, monkeypatch):
    kept, synced = Journal.open(path), []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    kept.save_contribution(P, own(Q))
    assert synced == [path.stat().st_size]
    kept.close()


def test_what_a_killed_process_left_in_the_page_cache_is_put_on_the_disk_before_it_is_acted_upon(
    path, written, monkeypatch
):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    reopen(path)
    assert synced == [path.stat().st_ino, path.parent.stat().st_ino]


@pytest.fixture
def small(monkeypatch, quick):
    monkeypatch.setattr(journal, "COMPACT_BYTES", 2000)


def fill(kept):
    for ballot in range(40):
        kept.save_acceptor(P, Acceptor(ballot, (ballot, value(P))))
        kept.save_acceptor(Q, Acceptor(ballot))
    kept.save_contribution(P, own(P))
    kept.save_contribution(R, own(R))


def test_pruning_keeps_exactly_what_it_is_told_and_the_file_small(path, small):
    kept = Journal.open(path)
    fill(kept)
    kept.prune([Q, R], tip=Q)
    assert memory(kept) == ({Q: Acceptor(39)}, {R: own(R)})
    for ballot in range(40, 140):
        kept.save_acceptor(Q, Acceptor(ballot, (ballot, value(Q))))
    assert path.stat().st_size < 4000
    assert kept.acceptors[Q].promised == 139
    kept.close()
    assert reopen(path) == (kept.id, False, memory(kept))
    again = Journal.open(path)
    assert again.floor == {Q}
    again.moving({Q, R})
    again.close()
    moved = Journal.open(path)
    assert moved.floor == {Q, R}, "the chain may be found where it was, or where it was going"
    moved.close()


def test_a_stuck_round_of_many_ballots_does_not_fill_the_disk(path, small):
    kept = Journal.open(path)
    fill(kept)
    assert path.stat().st_size < 4000
    assert kept.floor == frozenset()
    kept.close()
    assert reopen(path) == (kept.id, False, ({P: Acceptor(39, (39, value(P))), Q: Acceptor(39)}, memory(kept)[1]))


@pytest.mark.parametrize("where", ["write", "rename"])
def test_a_compaction_cut_short_leaves_the_old_file_in_force(path, monkeypatch, where):
    kept = Journal.open(path)
    fill(kept)
    before = path.read_bytes()
    monkeypatch.setattr(journal, "COMPACT_BYTES", 0)

    def fail(*_):
        raise OSError(28, "no space left")

    with monkeypatch.context() as broken:
        broken.setattr(*((os, "fsync") if where == "write" else (type(path), "rename")), fail)
        with pytest.raises(OSError, match="no space"):
            kept.prune([Q], tip=Q)
    assert path.read_bytes() == before
    kept.save_acceptor(Q, Acceptor(50))  # compacts first: there is room again
    assert path.stat().st_size < len(before) / 4
    kept.close()
    assert reopen(path) == (kept.id, False, ({Q: Acceptor(50)}, {}))


def test_nothing_is_appended_to_a_compacted_file_before_its_name_is_on_the_disk(path, monkeypatch):
    kept = Journal.open(path)
    fill(kept)
    monkeypatch.setattr(journal, "COMPACT_BYTES", 0)

    def fail(*_):
        raise OSError(5, "input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(durable, "sync", fail)
        with pytest.raises(OSError, match="input/output"):
            kept.prune([Q], tip=Q)
        size = path.stat().st_size
        with pytest.raises(OSError, match="input/output"):
            kept.save_acceptor(Q, Acceptor(50))
    assert path.stat().st_size == size
    assert kept.acceptors == {Q: Acceptor(39)}
    kept.save_acceptor(Q, Acceptor(50))
    kept.close()
    assert reopen(path) == (kept.id, False, ({Q: Acceptor(50)}, {}))


def test_a_stale_half_of_a_compaction_is_harmless(path, written):
    for junk in (b"", written[0][:50], b"\xff" * 5000):
        durable.partial_of(path).write_bytes(junk)
        assert reopen(path) == (written[1], False, written[2][-1][1])
        assert not durable.partial_of(path).exists()


def test_a_renewed_journal_is_empty_and_has_another_id(path, written):
    kept = Journal.open(path)
    kept.renew()
    assert kept.lost
    assert kept.id != written[1]
    assert memory(kept) == ({}, {})
    kept.save_acceptor(P, Acceptor(1))
    kept.close()
    assert path.with_name("journal.damaged-1").read_bytes() == written[0]
    assert reopen(path) == (kept.id, False, ({P: Acceptor(1)}, {}))


def test_a_closed_journal_takes_nothing(path):
    kept = Journal.open(path)
    kept.close()
    with pytest.raises(OSError):
        kept.save_acceptor(P, Acceptor(1))


def test_a_journal_that_forgot_nothing_needs_no_floor_when_the_chain_moves(path):
    kept = Journal.open(path)
    size = path.stat().st_size
    kept.moving({P, Q})
    assert path.stat().st_size == size
    kept.close()


def test_saves_from_several_threads_all_stay(path):
    """A contribution is journaled by one thread while another one journals promises, and a third prunes."""
    kept = Journal.open(path)

    def promise(parent):
        for ballot in range(60):
            kept.save_acceptor(parent, Acceptor(ballot))

    def contribute():
        for _ in range(60):
            kept.save_contribution(R, own(R))
            kept.prune([P, Q, R], tip=P)

    with ThreadPoolExecutor(3) as pool:
        for job in [pool.submit(promise, P), pool.submit(promise, Q), pool.submit(contribute)]:
            job.result()
    kept.close()
    assert reopen(path) == (kept.id, False, ({P: Acceptor(59), Q: Acceptor(59)}, {R: own(R)}))
