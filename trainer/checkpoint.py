"""What a peer's trainer must remember to go on where it stopped: moments, data position, unfinished inner steps.

A checkpoint is a folder `checkpoint-<n>`: sharded safetensors written by `torch.distributed.checkpoint` (no pickle in
it, so nothing in it can run; any number of ranks reads what any number wrote) and `stamp.json`. It is made under
another name and renamed once complete; the previous one is kept. The outer state is not in it: the daemon holds that.

The stamp names the certificate behind the state that the steps began from. Writing goes on in the background while
training does, with collectives of its own.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from atoll.trainer.ranks import Ranks

logger = logging.getLogger(__name__)

KEPT = 2
_FORMAT = 1


@dataclass(frozen=True)
class Stamp:
    run_id: str
    parent: str        # certificate behind the outer state that the inner steps began from
    round: int
    inner_step: int    # inner steps since then; with more than 0, the inner parameters are in the checkpoint too
    applied: int       # those of them that were not skipped
    tokens: int        # real tokens learned from since then
    updates: int       # optimizer steps behind the moments
    position: int      # sequences drawn by the loader
    data_digest: str   # names the training tokens that `position` counts in
    format: int = _FORMAT


class Checkpoints:
    """The checkpoints in one folder; `newest` and `poll` apart, every method is a collective."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder, self._ranks = folder, ranks
        self._pending: tuple[Future[Any], Path, Path] | None = None
        self.failure = ""
        """A sentence on the last checkpoint that could not be written, for the caller to tell and to clear."""
        with ranks.lead_works():
            if ranks.leads:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                for partial in folder.glob("partial-*"):
                    shutil.rmtree(partial)

    def newest(self) -> tuple[int, Stamp] | None:
        """Number and stamp of the newest checkpoint of this format; rank 0 asks."""
        for number in reversed(self._numbers()):
            try:
                stamp = Stamp(**json.loads((self._path(number) / "stamp.json").read_text()))
            except (OSError, ValueError, TypeError) as error:
                logger.warning("checkpoint %d cannot be read (%s): trying the one before it", number, error)
                continue
            if stamp.format == _FORMAT:
                return number, stamp
        return None

    def begin(self, stamp: Stamp, tensors: Mapping[str, torch.Tensor]) -> None:
        """Start to write a checkpoint; returns as soon as the tensors have been copied.

        A checkpoint that cannot be written (a full disk) ends nobody's training: `failure` says so, the last one stays.
        """
        self.finish()
        numbers = self._numbers() if self._ranks.leads else []
        number = (numbers[-1] if numbers else 0) + 1
        number, = self._ranks.from_lead([number if self._ranks.leads and self._stamped(number, stamp) else -1], 1)
        if number < 0:
            return
        partial = self._folder / f"partial-{number}"
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        future = async_save(dict(tensors), storage_writer=writer, process_group=self._ranks.background)
        if not isinstance(future, Future):
            future = future.upload_completion
        self._pending = (future, partial, self._path(number))

    def poll(self) -> None:
        """Put a checkpoint in place that has been written meanwhile. Call it now and then."""
        if self._pending is not None and self._pending[0].done():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written and put it in place."""
        if self._pending is None:
            return
        (future, partial, final), self._pending = self._pending, None
        try:
            future.result()
            if self._ranks.leads:
                self._place(partial, final)
        except (OSError, CheckpointException) as error:
            self._fail(partial, error)

    def load(self, number: int, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Fill the tensors, sharded as they are, from a checkpoint; False (and any contents) where it is damaged."""
        reader = HuggingFaceStorageReader(str(self._path(number)))
        try:
            load(dict(tensors), storage_reader=reader, process_group=self._ranks.background)
        except CheckpointException as error:
            logger.warning("checkpoint %d is damaged: %s", number, error)
            return False
        return True

    def _stamped(self, number: int, stamp: Stamp) -> bool:
        partial = self._folder / f"partial-{number}"
        try:
            shutil.rmtree(partial, ignore_errors=True)  # what a failure could not remove
            partial.mkdir(mode=0o700)
            (partial / "stamp.json").write_text(json.dumps(dataclasses.asdict(stamp)))
        except OSError as error:
            self._fail(partial, error)
            return False
        return True

    def _place(self, partial: Path, final: Path) -> None:
        partial.rename(final)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        for old in self._numbers()[:-KEPT]:
            shutil.rmtree(self._path(old))

    def _fail(self, partial: Path, error: BaseException) -> None:
        cause = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        self.failure = f"No checkpoint could be written to {self._folder} ({cause}): make room; training goes on."
        logger.warning("%s: %s", self.failure, error)
        if self._ranks.leads:
            shutil.rmtree(partial, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"checkpoint-{number}"

    def _numbers(self) -> list[int]:
        """The checkpoints that there are, the oldest first."""
        tails = (folder.name.rpartition("-")[2] for folder in self._folder.glob("checkpoint-*"))
        return sorted(int(tail) for tail in tails if tail.isdigit())
