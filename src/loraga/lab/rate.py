"""`learning_rate: auto`: suggested before the first step, and measured again when the warm-up ends.

The second measurement lowers the peak to the geometric mean of both, and never raises it: the first one sees a step
that mostly learns the format of the answers and is often too high, the second one is mostly too low
(docs/learning-rate.md). Both are in the run's folder.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from loraga import GradientError, LoragaError, suggest_learning_rate

from .errors import LabError
from .own_training import AS_USUAL, OwnTraining
from .run_folder import RATE, RATE_PICTURE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loraga import SuggestedRate

    from .run_folder import RunFolder


def first_rate(
    folder: RunFolder, model: Any, batches: Sequence[dict[str, Any]], seed: int, own: OwnTraining = AS_USUAL
) -> float:
    """The peak to begin with: the one that the folder holds, or else a new suggestion, kept there with its curve.

    Args:
        folder: the run's.
        model: before its first step.
        batches: training batches, at least two.
        seed: of what the model draws.
        own: what the method does otherwise in training.

    Returns:
        The learning rate.

    Raises:
        LabError: if the loss has no minimum along the first step.
    """
    if not (folder / RATE).exists():
        try:
            rate = _suggested(model, batches, seed, own)
        except GradientError as cause:
            raise LabError(f"learning_rate: auto finds no rate here, write a number ({cause})") from cause
        rate.plot(folder / RATE_PICTURE)
        folder.write_json(RATE, rate.to_dict())
    return folder.read_json(RATE)["value"]


def peak_rate(folder: RunFolder) -> float:
    """The peak that counted, of one measurement or of both."""
    kept = folder.read_json(RATE)
    return combined(kept["value"], kept.get("after_warm_up", kept)["value"])


def combined(first: float, second: float) -> float:
    """The first measurement, or the geometric mean of both where the second one is lower."""
    return first if second >= first else math.sqrt(first * second)


class RateAfterWarmUp(TrainerCallback):
    """Measures the rate again when the warm-up ends, and lowers the peak to the geometric mean if it is lower now.

    Args:
        folder: the run's.
        batches: makes training batches that the first measurement did not use.
        seed: of what the model draws.
        tell: is told what came out.
        own: what the method does otherwise in training.
    """

    def __init__(
        self,
        folder: RunFolder,
        batches: Callable[[], Sequence[dict[str, Any]]],
        seed: int,
        tell: Callable[[str], None],
        own: OwnTraining = AS_USUAL,
    ) -> None:
        self._folder, self._batches, self._seed, self._tell, self._own = folder, batches, seed, tell, own

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures at the warm-up's last step."""
        if state.global_step != args.get_warmup_steps(state.max_steps):
            return
        kept = self._folder.read_json(RATE)
        try:
            again = _suggested(kwargs["model"], self._batches(), self._seed, self._own)
        except LoragaError as error:  # a run is not given up for want of a second opinion
            self._tell(f"learning rate: the peak stays {kept['value']:.2g}, no second measurement ({error})")
            return
        self._folder.write_json(RATE, {**kept, "after_warm_up": {"step": state.global_step, **again.to_dict()}})
        peak = combined(kept["value"], again.value)
        if peak == kept["value"]:
            self._tell(f"learning rate: {again.value:.2g} after the warm-up, so the peak stays {kept['value']:.2g}")
            return
        lower_peak(kwargs["optimizer"], kwargs["lr_scheduler"], peak / kept["value"])
        self._tell(
            f"learning rate: {again.value:.2g} after the warm-up, so the peak is their geometric mean, {peak:.2g}"
        )


def _suggested(model: Any, batches: Sequence[dict[str, Any]], seed: int, own: OwnTraining) -> SuggestedRate:
    """The suggestion as the recipe's learning_rate counts, which may be that of some parameters alone."""
    with own.measuring(model):
        rate = suggest_learning_rate(model, batches, num_batches=None, seed=seed, progress=False)
    return _divided(rate, own.measured_rate)


def _divided(rate: SuggestedRate, by: float) -> SuggestedRate:
    curve, *halves = (tuple((at / by, loss) for at, loss in points) for points in (rate.curve, *rate.halves))
    value, low, high = rate.value / by, rate.low / by, rate.high / by
    return replace(rate, value=value, low=low, high=high, curve=curve, halves=(halves[0], halves[1]))


def lower_peak(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiplies what a schedule gives from now on; both states go into the checkpoints, so a resumed run keeps it.

    Args:
        optimizer: its groups' rates are those of the next step.
        scheduler: of torch.optim.lr_scheduler; one that reads the optimizer's rate has no base rates.
        factor: below 1.
    """
    for group in optimizer.param_groups:
        group["lr"] *= factor
        if "initial_lr" in group:
            group["initial_lr"] *= factor
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # what Trainer logs
