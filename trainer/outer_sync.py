"""The trainer's whole view of the network: one small port.

Only rank 0 holds an `OuterSync`. The trainer knows nothing of peers, rounds' agreement or sockets behind it; the node
implements the port over a socket to the p2p service, tests implement it in memory (`LocalOuterSync`, further down in
the package) and drive the same loop.
"""

import enum
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Order(enum.Enum):
    """What the trainer does after the inner step it has just reported."""

    CONTINUE = "continue"
    FREEZE = "freeze"  # the round closes now: contribute what there is, at this step boundary
    REBASE = "rebase"  # another outer state has been certified or chosen: drop the inner steps, take `latest()`
    STOP = "stop"      # drain: checkpoint and leave


@dataclass(frozen=True)
class OuterSnapshot:
    """A certified outer state, as the trainer sees it.

    `params` is a `(numel,) float32` read-only view in canonical order, backed by memory that the port owns; it stays
    valid until the next call of `latest` or `wait_next` on the same port.
    """

    parent: bytes  # id of the certificate behind this state (the run_id at genesis)
    round: int     # certified rounds so far, 0 at genesis
    tokens: int    # certified tokens of the whole run so far
    finished: bool  # the run has all the rounds that its manifest asks for
    params: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Progress:
    """What a trainer reports after each inner step; also the heartbeat by which the daemon knows it is alive."""

    parent: bytes
    inner_step: int       # steps taken in this round, 1 after the first
    inner_steps: int      # steps this round aims at
    loss: float           # of this step, nats per token; NaN where the step was skipped
    tokens: int           # real tokens consumed since `parent`
    tokens_per_s: float
    skipped_steps: int = 0   # steps skipped since start because loss or gradient were not finite
    epoch: int = 0           # how often the local corpus has been wrapped around
    notice: str = ""         # one sentence worth telling a person (a wrapped corpus, a skipped step, …)


@dataclass(frozen=True)
class Evaluation:
    """Held-out loss of a certified outer state."""

    parent: bytes
    round: int
    loss: float    # nats per token, weighted by real tokens
    tokens: int
    bytes: int     # bytes of text behind the tokens, so that losses of different tokenizers compare


class OuterSync(Protocol):
    def latest(self) -> OuterSnapshot:
        """The outer state to train from; blocks until the peer holds one (it may still be fetching genesis)."""
        ...

    def report(self, progress: Progress) -> Order:
        """Tell how far the round is and learn what to do next. Returns at once."""
        ...

    def vector(self) -> npt.NDArray[np.float32]:
        """A writable `(numel,) float32` buffer for the next pseudo-gradient; filling it is the caller's job."""
        ...

    def contribute(self, parent: bytes, tokens: int, steps: int, vector: npt.NDArray[np.float32]) -> None:
        """Hand over the filled `vector()` as this peer's pseudo-gradient for the round behind `parent`.

        `vector = outer_params - inner_params`. Ownership passes to the port. Raises ValueError on a non-finite vector
        or zero tokens: such a contribution neither leaves this machine nor counts.
        """
        ...

    def wait_next(self, parent: bytes) -> OuterSnapshot | None:
        """Block until the outer state is another than the one behind `parent`; None when the daemon drains."""
        ...

    def evaluated(self, evaluation: Evaluation) -> None:
        """Report a held-out loss."""
        ...
