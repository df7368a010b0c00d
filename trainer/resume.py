"""How much of a checkpoint may be taken up again, given the outer state that the daemon holds now.

Same parent: everything, unfinished inner steps too, so that a clean stop costs nothing. The round after it, where the
checkpoint's round was finished: the moments, which is what a trainer that had stayed would have. Any other state: only
the data position. Another run, or other text: nothing. Pure; `loop` acts on it.
"""

import enum
from dataclasses import dataclass

from atoll.trainer.checkpoint import Stamp


class Level(enum.IntEnum):
    NOTHING = 0
    POSITION = 1   # where in the data to go on
    MOMENTS = 2    # and the optimizer's moments
    STEPS = 3      # and the inner parameters, in the middle of a round


@dataclass(frozen=True)
class Resumption:
    """What to take up; integers, so that rank 0 can tell the others."""

    level: int = Level.NOTHING
    number: int = 0
    position: int = 0
    step: int = 0
    applied: int = 0
    tokens: int = 0
    updates: int = 0

    def values(self) -> list[int]:
        return [self.level, self.number, self.position, self.step, self.applied, self.tokens, self.updates]


def decide(
    newest: tuple[int, Stamp] | None, *, run_id: bytes, data_digest: str, parent: bytes, round_number: int, steps: int,
) -> Resumption:
    """What to take up of the newest checkpoint under the outer state (`parent`, `round_number`)."""
    if newest is None:
        return Resumption()
    number, stamp = newest
    if stamp.run_id != run_id.hex():
        return Resumption()
    if stamp.parent == parent.hex():
        level = Level.STEPS if stamp.inner_step else Level.MOMENTS
    elif stamp.round + 1 == round_number and stamp.inner_step >= steps:
        level = Level.MOMENTS
    else:
        level = Level.POSITION
    # Other text than when the checkpoint was made: its position counts in something that is gone.
    position = stamp.position if stamp.data_digest == data_digest else 0
    return Resumption(level, number, position, stamp.inner_step, stamp.applied, stamp.tokens, stamp.updates)
