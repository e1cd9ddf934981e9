"""One training run with transformers' Trainer, on given batches in their given order."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WARMUP = 0.03  # part of the steps, as in the paper


@dataclass(frozen=True)
class TrainingRun:
    """What one run left behind, beside the trained model.

    Attributes:
        losses: mean loss of each step's batch, before the step, in nats.
        seconds_per_step: the median step.
    """

    losses: tuple[float, ...]
    seconds_per_step: float


def train(
    model: Any,
    batches: Sequence[dict[str, Any]],
    learning_rate: float,
    seed: int,
    on_step: Callable[[float], None] | None = None,
) -> TrainingRun:
    """Trains the model's trainable parameters on each batch once, in place.

    AdamW without weight decay, 3 % of the steps as warm-up, then a cosine to 0. The batches are ready-made, so every
    method that is given them sees the same ones in the same order.

    Args:
        model: the model, a PeftModel as a rule.
        batches: what the model takes as keywords, one a step.
        learning_rate: the peak.
        seed: of whatever is random in training, such as dropout.
        on_step: called after each step with its loss.

    Returns:
        The losses and the time.
    """
    clock = _Clock(on_step)
    with tempfile.TemporaryDirectory() as scratch:  # the Trainer wants a folder; nothing is saved there
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                per_device_train_batch_size=1,  # of ready-made batches
                train_sampling_strategy="sequential",
                num_train_epochs=1,
                learning_rate=learning_rate,
                weight_decay=0.0,
                lr_scheduler_type="cosine",
                warmup_steps=WARMUP,
                logging_steps=1,
                logging_nan_inf_filter=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                seed=seed,
            ),
            train_dataset=list(batches),
            data_collator=_only,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return TrainingRun(losses=tuple(clock.losses), seconds_per_step=statistics.median(clock.seconds))


def _only(ready: list[dict[str, Any]]) -> dict[str, Any]:
    (batch,) = ready
    return batch


class _Clock(TrainerCallback):
    """Keeps each step's loss and duration."""

    def __init__(self, on_step: Callable[[float], None] | None) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._on_step = on_step
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])
            if self._on_step is not None:
                self._on_step(logs["loss"])
