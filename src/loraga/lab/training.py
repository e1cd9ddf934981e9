"""One training run with transformers' Trainer, that stops with a checkpoint when asked to and goes on from the newest.

examples --Trainer--> checkpoints, log.jsonl, and a trained model in memory
"""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from loraga import newest_complete_checkpoint

from .errors import DivergedError, LabError, RecipeError
from .own_training import AS_USUAL, OwnTraining

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from transformers import TrainingArguments
    from transformers.trainer_callback import TrainerState

    from .examples import Example
    from .interruption import Interruption
    from .progress import Progress
    from .recipe import Recipe
    from .run_folder import RunFolder


TORCH_WRITER = "inline_container"  # torch.save turns every error of the file system into a RuntimeError of its writer
OF_THIS_PROCESS = ("train_runtime", "train_tokens_per_second")  # begin anew when a run goes on


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on: rows, rows to measure on meanwhile (maybe none), and how a batch is made of them."""

    train: Sequence[Example]
    held_out: Sequence[Example]
    collate: Callable[[Sequence[Example]], dict[str, Any]]

    def micro_batches(self, recipe: Recipe, first: int, count: int) -> list[dict[str, Any]]:
        """Micro-batches of training rows in an order drawn by the seed; a short set begins anew.

        Args:
            recipe: the size of a micro-batch, and the seed.
            first: micro-batches to pass over, so that two uses see different rows.
            count: how many.

        Returns:
            Batches on the CPU.
        """
        size = recipe.per_device_train_batch_size
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
        starts = range(first * size, (first + count) * size, size)
        return [self.collate([self.train[order[i % len(order)]] for i in range(at, at + size)]) for at in starts]


def train(
    model: Any,
    tokenizer: Any,
    data: TrainingData,
    arguments: TrainingArguments,
    folder: RunFolder,
    interruption: Interruption,
    progress: Progress,
    callbacks: Sequence[TrainerCallback] = (),
    own: OwnTraining = AS_USUAL,
) -> TrainerState:
    """Trains the model's trainable parameters in place, from the newest complete checkpoint in the folder on.

    Args:
        model: ready to train.
        tokenizer: the model's, saved into the checkpoints.
        data: what to train on.
        arguments: Trainer's.
        folder: the run's; checkpoints and log.jsonl go there.
        interruption: looked at after each step; when it came, a checkpoint is written and training stops.
        progress: told each step that is done, and the loss.
        callbacks: others of Trainer's.
        own: what the method does otherwise.

    Returns:
        Trainer's state: it is at its last step, or at the one where somebody asked it to stop.

    Raises:
        RecipeError: if Trainer refuses its arguments.
        LabError: if a checkpoint cannot be written, or the loss is not finite any more.
    """
    log = _Log(folder, progress)
    wants_evaluation = str(arguments.eval_strategy.value) != "no"
    trainer = _trainer(
        model=model,
        args=arguments,
        train_dataset=_dicts(data.train),
        eval_dataset=_dicts(data.held_out) if wants_evaluation else None,
        data_collator=lambda rows: data.collate([row["example"] for row in rows]),
        processing_class=tokenizer,
        callbacks=[*own.callbacks, *callbacks, log, _Stop(interruption)],
        optimizers=(None if own.optimizer is None else own.optimizer(model, arguments), None),
    )
    trainer.remove_callback(PrinterCallback)
    if model.config.is_encoder_decoder:
        # its forward takes the number of terms of a step and ignores it: Trainer would sum the means of micro-batches
        trainer.model_accepts_loss_kwargs = False
    checkpoint = _checkpoint_to_go_on_from(folder, own.checkpoint_files)
    try:
        with interruption.at_a_good_moment():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except _NothingLeftError:
        if arguments.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
            trainer._load_best_model()
        trainer.callback_handler.on_train_end(arguments, trainer.state, trainer.control)
    except LabError:
        raise
    except Exception as cause:
        raise _explained(cause, log.has_stepped, folder) from cause
    return trainer.state


def _checkpoint_to_go_on_from(folder: RunFolder, needed: Sequence[str]) -> Path | None:
    """The newest complete one; what a callback adds to a checkpoint is written last of all."""
    while (found := newest_complete_checkpoint(folder.path)) is not None:
        if all((found / name).is_file() for name in needed):
            return found
        shutil.rmtree(found)
    return None


def _explained(cause: Exception, has_stepped: bool, folder: RunFolder) -> Exception:
    """What an error out of Trainer means for whoever wrote the recipe; the error itself if it is our own fault."""
    said = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    if TORCH_WRITER in said:
        return LabError(
            f"a checkpoint in {folder.path} cannot be written (no space left?); the same command goes on from the last "
            "complete one"
        )
    if "Weights only load failed" in said:
        return LabError(
            f"the newest checkpoint in {folder.path} holds more than torch reads safely, so it is not one of ours; "
            "remove it, and the same command goes on from the one before"
        )
    if not has_stepped and not isinstance(cause, OSError):  # optimizer, schedule and loader are made of its values
        return RecipeError([f"transformers.Trainer cannot begin with these values ({said})"])
    if "metric_for_best_model" in said:
        return RecipeError([f"metric_for_best_model names nothing that is measured ({said})"])
    return cause


def _trainer(**settings: Any) -> Trainer:
    try:
        return Trainer(**settings)
    except (ValueError, ImportError, RuntimeError) as cause:
        raise RecipeError([f"transformers.Trainer refuses a value: {' '.join(str(cause).split())}"]) from cause


def _dicts(rows: Sequence[Example]) -> list[dict[str, Any]]:
    """Rows as samplers that group by length ask for them."""
    return [{"input_ids": row.input_ids, "example": row} for row in rows]


def peak_memory() -> int:
    """The most memory that this process had at once, in bytes: of its CUDA device, or else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _NothingLeftError(Exception):
    """The checkpoint is that of the last step. Trainer looks whether it is through only after a step, one too many."""


class _Log(TrainerCallback):
    """Writes log.jsonl and tells how far it is."""

    def __init__(self, folder: RunFolder, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._note, self._since, self._seconds = "", 0.0, 0.0
        self.has_stepped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._folder.cut_log(state.global_step)
        before = self._folder.log()
        self._seconds = before[-1]["seconds"] if before else 0.0
        self._since = time.monotonic()
        self._progress.begin("training", state.max_steps, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            raise _NothingLeftError
        self.has_stepped = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.advance(1, f"training: step {state.global_step} of {state.max_steps}{self._note}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or not {"loss", "eval_loss"} & set(logs):
            return  # Trainer's summary at the end, whose times are of this process alone
        line = {"step": state.global_step, **logs}
        for name in OF_THIS_PROCESS:
            line.pop(name, None)
        line["tokens"] = int(line.pop("num_input_tokens_seen", state.num_input_tokens_seen))
        line["seconds"] = round(self._seconds + time.monotonic() - self._since, 3)
        line["peak_memory"] = peak_memory()
        self._folder.add_to_log(line)
        if not math.isfinite(logs.get("loss", 0.0)):
            raise DivergedError(
                f"the loss is {logs['loss']} at step {state.global_step}: training has diverged; lower learning_rate, "
                "in another output_dir"
            )
        if "loss" in logs:
            self._note = f", loss {logs['loss']:.3f}"


class _Stop(TrainerCallback):
    """Ends training after a step, with a checkpoint, when somebody asked for it."""

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._interruption.number is not None:
            control.should_save = True
            control.should_training_stop = True
