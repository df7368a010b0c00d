"""What of a checkpoint is taken up again: as much as is still true, and nothing of another run."""

import dataclasses
import errno
from pathlib import Path

import pytest
import torch

from atoll.trainer.checkpoint import KEPT, Checkpoints, Stamp
from atoll.trainer.resume import Level, decide

RUN, PARENT, OTHER = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
STAMP = Stamp(
    run_id=RUN.hex(),
    parent=PARENT.hex(),
    round=4,
    inner_step=0,
    applied=0,
    tokens=0,
    updates=80,
    position=640,
    data_digest="d",
)
FINISHED = dataclasses.replace(STAMP, inner_step=20, applied=19, tokens=1000)


@pytest.mark.parametrize(
    ("stamp", "parent", "round_number", "level"),
    [
        (STAMP, PARENT, 4, Level.MOMENTS),  # the beginning of this very round
        (dataclasses.replace(STAMP, inner_step=7), PARENT, 4, Level.STEPS),  # amid it
        (FINISHED, PARENT, 4, Level.STEPS),  # its end: contribute again, the same bytes
        (FINISHED, OTHER, 5, Level.MOMENTS),  # the round was certified meanwhile
        (dataclasses.replace(STAMP, inner_step=7), OTHER, 5, Level.POSITION),  # … without all of this peer's steps
        (FINISHED, OTHER, 6, Level.POSITION),
        (FINISHED, OTHER, 4, Level.POSITION),
    ],
)
def test_as_much_is_taken_up_as_fits_the_outer_state(stamp, parent, round_number, level):
    chosen = decide((3, stamp), run_id=RUN, data_digest="d", parent=parent, round_number=round_number, steps=20)
    assert (chosen.level, chosen.position) == (level, 640)


def test_nothing_is_taken_up_of_another_run():
    chosen = decide((3, STAMP), run_id=OTHER, data_digest="d", parent=PARENT, round_number=4, steps=20)
    assert (chosen.level, chosen.position) == (Level.NOTHING, 0)
    assert decide(None, run_id=RUN, data_digest="d", parent=PARENT, round_number=4, steps=20).level == Level.NOTHING


def test_a_position_in_other_text_is_not_taken_up():
    chosen = decide((3, STAMP), run_id=RUN, data_digest="other", parent=PARENT, round_number=4, steps=20)
    assert (chosen.level, chosen.position) == (Level.MOMENTS, 0)


def test_a_checkpoint_comes_back_and_only_the_last_ones_are_kept(ranks, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", ranks)
    for number in range(4):
        checkpoints.begin(dataclasses.replace(STAMP, round=number), {"values": torch.full((3, 2), float(number))})
    checkpoints.finish()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["checkpoint-3", "checkpoint-4"][-KEPT:]
    newest = Checkpoints(tmp_path / "c", ranks).newest()
    assert newest == (4, dataclasses.replace(STAMP, round=3))
    into = torch.zeros(3, 2)
    assert checkpoints.load(4, {"values": into})
    assert into.eq(3.0).all()


def test_a_checkpoint_holds_nothing_that_could_be_executed(ranks, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", ranks)
    checkpoints.begin(STAMP, {"values": torch.zeros(2)})
    checkpoints.finish()
    assert {path.suffix for path in (tmp_path / "c" / "checkpoint-1").iterdir()} == {".safetensors", ".json"}


def break_stamp(folder: Path) -> None:
    (folder / "stamp.json").write_text("{")


def test_an_unreadable_stamp_leaves_the_checkpoint_before_it(ranks, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", ranks)
    for number in range(2):
        checkpoints.begin(dataclasses.replace(STAMP, round=number), {"values": torch.zeros(2)})
    checkpoints.finish()
    break_stamp(tmp_path / "c" / "checkpoint-2")
    newest = checkpoints.newest()
    assert newest is not None
    assert newest[0] == 1


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all, but long enough to look", None])
def test_a_damaged_checkpoint_is_refused(damage, ranks, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", ranks)
    checkpoints.begin(STAMP, {"values": torch.zeros(2)})
    checkpoints.finish()
    (file,) = (tmp_path / "c" / "checkpoint-1").glob("*.safetensors")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    assert not checkpoints.load(1, {"values": torch.zeros(2)})


def test_what_was_cut_short_by_a_crash_is_removed(ranks, tmp_path):
    (tmp_path / "c" / "partial-7").mkdir(parents=True)
    Checkpoints(tmp_path / "c", ranks)
    assert list((tmp_path / "c").iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_is_named_and_the_last_one_stays(ranks, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c", ranks)
    checkpoints.begin(STAMP, {"values": torch.zeros(2)})
    checkpoints.finish()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        checkpoints.begin(STAMP, {"values": torch.zeros(2)})
    assert "No space left on device" in checkpoints.failure
    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.checkpoint.filesystem.FileSystem.create_stream", full)
        checkpoints.failure = ""
        checkpoints.begin(STAMP, {"values": torch.zeros(2)})
        checkpoints.finish()
    assert "make room" in checkpoints.failure
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["checkpoint-1"]
    checkpoints.begin(STAMP, {"values": torch.zeros(2)})
    checkpoints.finish()
    assert checkpoints.newest() == (2, STAMP)
