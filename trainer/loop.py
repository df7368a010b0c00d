"""The training loop: take the certified outer state, make inner steps, contribute, wait for the next.

All ranks run it in step (`SharedSync`). It knows the network only as that port, and the model only as `flatten`,
`inner` and `evaluate` show it. `rank` builds its parts and calls `run`; tests call it with `LocalOuterSync`.
"""

import logging
import time
from dataclasses import dataclass

import torch

from atoll.protocol.errors import NonFiniteError
from atoll.protocol.manifest import Manifest
from atoll.trainer import flatten
from atoll.trainer.checkpoint import Checkpoints, Stamp
from atoll.trainer.data.loader import Loader, Windows
from atoll.trainer.data.order import Indices
from atoll.trainer.evaluate import held_out_loss
from atoll.trainer.inner import InnerOptimizer, StepResult
from atoll.trainer.outer_sync import Evaluation, Order, Progress
from atoll.trainer.ranks import Ranks
from atoll.trainer.resume import Level, Resumption, decide
from atoll.trainer.schedule import learning_rate
from atoll.trainer.shared_sync import Outer, SharedSync

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """What is evaluated: these sequences of the held-out text, and the bytes of text behind their targets."""

    windows: Windows
    chosen: Indices
    text_bytes: int


@dataclass(frozen=True)
class LoopSettings:
    steps: int                      # inner steps of a round
    evaluate_every_rounds: int = 0  # beyond genesis and the end; 0: only those
    checkpoint_every_rounds: int = 1


@dataclass
class _Round:
    """How far the inner steps since the last outer state have come."""

    step: int = 0      # steps taken, skipped ones among them
    applied: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Parts:
    """What a loop drives; built by `rank`."""

    inner: InnerOptimizer
    loader: Loader
    held_out: HeldOut
    checkpoints: Checkpoints
    ranks: Ranks
    data_digest: str  # names the training tokens that the loader's position counts in


class TrainingLoop:
    def __init__(self, manifest: Manifest, settings: LoopSettings, parts: Parts, notice: str = "") -> None:
        """`notice`: a sentence on the data, told with the first progress."""
        self._manifest, self._settings = manifest, settings
        self._inner, self._loader, self._held_out = parts.inner, parts.loader, parts.held_out
        self._checkpoints, self._ranks, self._data_digest = parts.checkpoints, parts.ranks, parts.data_digest
        self._run_id = manifest.run_id
        self._round = _Round()
        self._skipped, self._speed = 0, 0.0
        self._notices = [notice] if notice else []

    def run(self, sync: SharedSync) -> None:
        """Train until the daemon says stop or drains; the last checkpoint is in place when this returns."""
        outer: Outer | None = sync.latest()
        assert outer is not None
        last = outer
        resumed = self._resume(outer)
        while outer is not None:
            last = outer
            if not resumed:
                self._take(outer)
            self._evaluate(sync, outer, resumed=resumed)
            resumed = False
            if outer.finished:
                outer = sync.wait_next(outer)
                continue
            order = self._inner_steps(sync, outer)
            if order is Order.STOP:
                break
            if order is Order.REBASE:
                outer = sync.latest()
                continue
            self._contribute(sync, outer)
            outer = sync.wait_next(outer)
        self._save(last)
        self._checkpoints.finish()

    def _take(self, outer: Outer) -> None:
        """Begin a round from a certified state; the moments are kept."""
        flatten.load(self._inner.model, outer.params, self._ranks)
        self._round = _Round()
        if self._loader.position and outer.round % self._settings.checkpoint_every_rounds == 0:
            self._save(outer)

    def _inner_steps(self, sync: SharedSync, outer: Outer) -> Order:
        """Steps until there are enough or the daemon wants something else; CONTINUE where there were enough."""
        draft, here = self._manifest.draft, self._round
        while here.step < self._settings.steps:
            started, epoch = time.monotonic(), self._loader.epoch
            rate = learning_rate(draft.inner, draft.run.rounds, outer.round, here.step)
            batch = self._loader.next(draft.inner.batch_sequences, self._ranks.rank, self._ranks.size)
            result = self._inner.step(batch, rate)
            here.step += 1
            here.applied += result.applied
            here.tokens += result.tokens
            self._account(result, outer, rate, epoch, batch.tokens / max(time.monotonic() - started, 1e-9))
            order = sync.report(self._progress(outer, result))
            self._checkpoints.poll()
            if self._checkpoints.failure:
                self._notices.append(self._checkpoints.failure)
                self._checkpoints.failure = ""
            if order is not Order.CONTINUE:
                return order
        return Order.CONTINUE

    def _contribute(self, sync: SharedSync, outer: Outer) -> None:
        """Hand over what the applied steps of this round have changed; nothing where there were none."""
        if not self._round.applied:
            self._say(f"Round {outer.round + 1}: no step could be applied, so nothing was contributed.")
            return
        vector = sync.vector()
        finite = flatten.pseudo_gradient(self._inner.model, outer.params, vector, self._ranks)
        if not finite:
            self._inner.forget()
            self._say(f"Round {outer.round + 1}: the pseudo-gradient is not finite: none was sent, moments start anew.")
            return
        try:
            sync.contribute(outer, self._round.tokens, self._round.applied, vector)
        except (ValueError, NonFiniteError) as error:
            self._say(f"Round {outer.round + 1}: the contribution was refused: {error}")

    def _evaluate(self, sync: SharedSync, outer: Outer, *, resumed: bool) -> None:
        """Held-out loss of the certified state in the model: at genesis, at the end, and as often as asked."""
        every = self._settings.evaluate_every_rounds
        due = outer.round == 0 or outer.finished or (every and outer.round % every == 0)
        if resumed or not due:
            return
        held_out = self._held_out
        batch = self._manifest.draft.inner.batch_sequences
        loss, tokens = held_out_loss(self._inner.model, held_out.windows, held_out.chosen, batch, self._ranks)
        sync.evaluated(Evaluation(outer.parent, outer.round, loss, tokens, held_out.text_bytes))

    def _resume(self, outer: Outer) -> bool:
        """Take up the newest checkpoint as far as it fits; True where the model now holds a round's inner steps."""
        decision = Resumption()
        if self._ranks.leads:
            decision = decide(
                self._checkpoints.newest(), run_id=self._run_id, data_digest=self._data_digest, parent=outer.parent,
                round_number=outer.round, steps=self._settings.steps,
            )
        chosen = Resumption(*self._ranks.from_lead(decision.values(), len(decision.values())))
        self._loader.position = chosen.position
        if chosen.level < Level.MOMENTS:
            return False
        with_steps = chosen.level == Level.STEPS
        if not self._checkpoints.load(chosen.number, self._tensors(with_parameters=with_steps)):
            self._inner.forget()
            self._say("The newest checkpoint is damaged: training goes on from the outer state with fresh moments.")
            return False
        self._inner.updates = chosen.updates
        if with_steps:
            self._round = _Round(chosen.step, chosen.applied, chosen.tokens)
        return with_steps

    def _save(self, outer: Outer) -> None:
        here = self._round
        stamp = Stamp(
            run_id=self._run_id.hex(), parent=outer.parent.hex(), round=outer.round, inner_step=here.step,
            applied=here.applied, tokens=here.tokens, updates=self._inner.updates, position=self._loader.position,
            data_digest=self._data_digest,
        )
        self._checkpoints.begin(stamp, self._tensors(with_parameters=here.step > 0))

    def _tensors(self, *, with_parameters: bool) -> dict[str, torch.Tensor]:
        parameters = {f"inner.{name}": parameter.detach() for name, parameter in self._inner.model.named_parameters()}
        return {**self._inner.moments(), **(parameters if with_parameters else {})}

    def _account(self, result: StepResult, outer: Outer, rate: float, epoch: int, speed: float) -> None:
        self._speed = speed if not self._speed else 0.8 * self._speed + 0.2 * speed
        if not result.applied:
            self._skipped += 1
            self._say(
                f"Step {self._round.step} of round {outer.round + 1} was skipped: its loss or gradient is not finite "
                f"(learning rate {rate:g}); {self._skipped} skipped so far."
            )
        if self._loader.epoch > epoch:
            self._say(f"The local text has been read to its end: epoch {self._loader.epoch + 1} begins.")

    def _progress(self, outer: Outer, result: StepResult) -> Progress:
        notice, self._notices = " ".join(self._notices), []
        return Progress(
            parent=outer.parent, inner_step=self._round.step, inner_steps=self._settings.steps, loss=result.loss,
            tokens=self._round.tokens, tokens_per_s=self._speed, skipped_steps=self._skipped, epoch=self._loader.epoch,
            notice=notice,
        )

    def _say(self, notice: str) -> None:
        """Told with the next progress, and logged once per peer."""
        self._notices.append(notice)
        if self._ranks.leads:
            logger.warning(notice)
