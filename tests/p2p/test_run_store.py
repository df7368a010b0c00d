"""What a run keeps on disk survives being torn anywhere."""

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
from atoll.protocol.identity import Identity, peer_name

ME = Identity(b"\1" * 32)


def certificate(number, parent):
    value = Value(
        parent,
        number,
        10 * number,
        (Contribution(ME.peer_id, bytes(32), 10),),
        (PartResult(bitmap({0}, 1), bytes(32)),),
        (Voter(ME.peer_id, FIRST_JOURNAL),),
        bytes([number]) * 32,
    )
    return Certificate(value, 0, (Vote.cast(ME, FIRST_JOURNAL, 0, value),))


@pytest.fixture
def filled(tmp_path):
    store, parent = RunStore(tmp_path), bytes(32)
    for number in (1, 2, 3):
        entry = LogEntry(certificate(number, parent), 1.5, 100, 200)
        store.append(entry)
        parent = entry.certificate.id
    return store


def test_the_log_comes_back_whole_and_as_rows(filled):
    assert [e.certificate.value.round for e in filled.log()] == [1, 2, 3]
    rows = run_store.read_rounds(filled.folder)
    assert rows[2]["parent"] == rows[1]["certificate"]
    assert rows[0]["contributors"] == [{"peer_id": peer_name(ME.peer_id), "tokens": 10}]
    assert run_store.read_summary(filled.folder) == {"round": 3, "tokens": 30, "state_digest": "03" * 32}


def test_a_log_torn_at_any_byte_keeps_every_whole_entry_and_takes_new_ones(filled):
    whole = (filled.folder / "log").read_bytes()
    size = len(whole) // 3
    for cut in range(0, len(whole), 11):
        (filled.folder / "log").write_bytes(whole[:cut])
        kept = filled.log()
        assert len(kept) == cut // size
        filled.append(LogEntry(certificate(9, bytes(32)), 0.0, 0, 0))
        assert [e.certificate.value.round for e in filled.log()][-1] == 9
        assert len(filled.log()) == len(kept) + 1


def test_a_flipped_bit_ends_the_log_before_its_entry(filled):
    whole = bytearray((filled.folder / "log").read_bytes())
    whole[len(whole) // 2] ^= 4
    (filled.folder / "log").write_bytes(whole)
    assert len(filled.log()) == 1


def test_a_vote_and_a_contribution_come_back_or_count_as_never_given(filled):
    assert filled.vote() is None
    value = certificate(4, bytes(32)).value
    filled.save_vote(bytes(32), 3, (2, value))
    assert filled.vote() == (bytes(32), 3, (2, value))
    own = Contribution(ME.peer_id, bytes([3]) * 32, 77)
    filled.save_contribution(bytes(32), own, (bytes(32),))
    assert filled.contribution() == (bytes(32), own, (bytes(32),))
    path = filled.folder / "vote"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 13):
        path.write_bytes(whole[:cut])
        assert filled.vote() is None


def test_the_two_newest_states_are_kept(filled):
    for number in range(4):
        filled.save_state(bytes([number]) * 32, [np.full(10, number, np.float32)])
    assert set(filled.saved_states()) == {b"\2" * 32, b"\3" * 32}
    assert filled.saved_states()[b"\3" * 32].read_bytes() == np.full(10, 3, "<f4").tobytes()
