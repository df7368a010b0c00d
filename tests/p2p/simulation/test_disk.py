"""What a disk in memory keeps."""

from atoll.p2p.simulation.disk import Disk, MemoryBlobs
from atoll.protocol.digest import content_digest
from atoll.protocol.messages import BlobKind

ONE, OTHER = bytes(32), bytes([1]) * 32


def test_a_power_cut_takes_what_was_never_synced() -> None:
    blobs = MemoryBlobs()
    kept, lost = content_digest(b"kept"), content_digest(b"lost")
    blobs.put(BlobKind.RESULT, ONE, kept, b"kept")
    blobs.put(BlobKind.RESULT, ONE, lost, b"lost")
    blobs.sync([kept])
    blobs.power_cut()
    assert (blobs.size(kept), blobs.size(lost), blobs.is_durable(kept)) == (4, None, True)


def test_the_same_bytes_of_two_rounds_go_one_by_one() -> None:
    blobs, name = MemoryBlobs(), content_digest(b"same")
    blobs.put(BlobKind.PART, ONE, name, b"same")
    blobs.put(BlobKind.RESULT, ONE, name, b"same")
    blobs.retain(BlobKind.PART, [OTHER])
    assert blobs.read(name) == b"same"
    blobs.discard_results(ONE)
    assert blobs.size(name) is None


def test_a_damaged_journal_forgets_promises_and_contributions_and_has_a_new_id() -> None:
    disk = Disk(bytes(16))
    disk.floor = frozenset({ONE})
    disk.lose_journal(bytes([7]) * 16)
    assert (disk.journal, disk.promises, disk.contributions, disk.floor) == (bytes([7]) * 16, {}, {}, frozenset())
