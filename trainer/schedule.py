"""The inner learning rate as a function of the run's counters alone, so that a late joiner falls in line at once."""

import math

from atoll.protocol.manifest import InnerSettings


def learning_rate(settings: InnerSettings, rounds: int, round_number: int, inner_step: int) -> float:
    """Learning rate of a step, the first of a round being 0. `rounds` 0 is an endless run: constant after the warm-up.

    A peer that makes more steps in a round than the manifest asks for stays at the round's last rate.
    """
    step = round_number * settings.steps + min(inner_step, settings.steps - 1)
    peak = settings.learning_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    total = rounds * settings.steps
    if not total or settings.schedule == "constant":
        return peak
    start = settings.warmup_steps
    if settings.schedule == "wsd":
        start = max(start, math.ceil(total * (1 - settings.decay_fraction)))
    if step < start or total <= start:
        return peak
    done = min(1.0, (step - start + 1) / (total - start))
    left = 0.5 * (1 + math.cos(math.pi * done)) if settings.schedule == "cosine" else 1 - done
    return peak * (settings.final_fraction + (1 - settings.final_fraction) * left)
