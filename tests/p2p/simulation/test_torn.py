"""A journal's real bytes under a simulated disk."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.p2p.round.synod import Acceptor
from atoll.p2p.simulation.disk import Disk
from atoll.p2p.simulation.torn import JournalFile

ONE, OTHER, ID = bytes(32), bytes([1]) * 32, bytes([9]) * 16


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(ID, file=JournalFile(tmp_path / "journal", ID))
    yield made
    assert made.file is not None
    made.file.close()


def test_what_was_saved_is_read_back(disk: Disk) -> None:
    disk.save(ONE, Acceptor(3))
    assert disk.read_back()
    assert disk.promises == {ONE: Acceptor(3)}


@pytest.mark.parametrize("seed", range(40))
def test_a_torn_record_is_there_whole_or_not_at_all(disk: Disk, seed: int) -> None:
    disk.save(ONE, Acceptor(3))
    whole = disk.save_torn(OTHER, Acceptor(4), random.Random(seed))
    assert disk.read_back()
    assert disk.promises == ({ONE: Acceptor(3), OTHER: Acceptor(4)} if whole else {ONE: Acceptor(3)})


def test_what_the_bytes_have_lost_is_seen(disk: Disk) -> None:
    disk.save(ONE, Acceptor(3))
    disk.promises[OTHER] = Acceptor(1)
    assert not disk.read_back()


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_seen_and_the_journal_begins_anew(disk: Disk, seed: int) -> None:
    disk.save(ONE, Acceptor(3))
    assert disk.damage_journal(bytes([7]) * 16, random.Random(seed))
    assert disk.read_back()
    assert (disk.journal, disk.promises) == (bytes([7]) * 16, {})
