"""What a trainer of transformers or TRL trains on: its batches, its loss, and how many terms that is the mean of.

The trainer's own `compute_loss` is called, on its own batches. Each kind says what a batch counts by, so that the
gradient is what one step over all the batches at once would see: loss terms for likelihoods, examples for preferences.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from .errors import AdapterError, BatchError
from .loss import loss_terms
from .trainer_state import same_loader, same_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn

    from .loss import Batch

# GRPO's losses that are a mean over completion tokens; the others are a mean over completions
TOKEN_LOSSES = ("bnpo", "dapo", "cispo", "vespo")


class TrainerLoss(ABC):
    """A trainer's loss as `initialize` wants it: a mean, and the number of terms of each batch."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def batches(self, count: int | None) -> list[Batch]:
        """The first batches of training that have something to learn from.

        Args:
            count: how many; None takes one epoch.

        Returns:
            At least one batch.

        Raises:
            BatchError: if there is none, or they have no labels.
        """
        batches = self._first(count)
        weights = [self.weight(batch) for batch in batches]
        empty = [index for index, weight in enumerate(weights) if weight == 0]
        if len(empty) == len(batches):
            raise BatchError(
                f"none of the {len(batches)} batches has a target: all labels are masked (-100). Packing or truncation "
                "may have cut the completions off: raise max_length, or look at the collator's masks"
            )
        if empty:
            warnings.warn(
                f"batches {', '.join(map(str, empty))} of {len(batches)} have no target (all labels are masked) and "
                "are left out, as training learns nothing from them: raise max_length, or drop those rows",
                stacklevel=4,
            )
        return [batch for index, batch in enumerate(batches) if index not in empty]

    def _first(self, count: int | None) -> list[Batch]:
        loader = _train_loader(self.trainer)
        with same_loader(loader):
            taken = _take(loader, count)
        _require_enough(len(taken), count)
        return taken

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The trainer's mean loss of a batch.

        Args:
            model: the trainer's model, not wrapped.
            batch: one of `batches`.

        Returns:
            The loss, a scalar.
        """
        with same_model(model), self.trainer.accelerator.autocast():
            value: Tensor = self._compute(model, dict(batch))
        return value

    def _compute(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        loss: Tensor = self.trainer.compute_loss(model, batch)
        return loss

    @abstractmethod
    def weight(self, batch: Batch) -> float:
        """Number of terms that the loss of a batch is the mean of.

        Args:
            batch: one of `batches`.

        Returns:
            The number; 0 if there is nothing to learn from.
        """


class Likelihood(TrainerLoss):
    """Trainer, Seq2SeqTrainer and SFTTrainer: terms are what the trainer divides by, labels that are not masked."""

    def _compute(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        items = self._items(batch)
        loss: Tensor = self.trainer.compute_loss(model, batch, num_items_in_batch=items)
        return loss

    def weight(self, batch: Batch) -> float:
        """See `TrainerLoss.weight`."""
        items = self._items(batch)
        if items is not None:
            return float(items) / self._scale()
        self._require_labels(batch)
        return loss_terms(self.trainer.accelerator.unwrap_model(self.trainer.model), batch, loss=self.loss)

    def _items(self, batch: Batch) -> Any:
        if self.trainer.args.n_gpu > 1:  # only `.train()` splits a batch for DataParallel
            return None
        return self.trainer._get_num_items_in_batch([batch], self.trainer.args.device)

    def _scale(self) -> int:
        """What Trainer multiplies the loss by where it has divided it by the items of every process."""
        if not self.trainer.args.average_tokens_across_devices:
            return 1
        return int(self.trainer.accelerator.num_processes) // int(self.trainer.get_tp_size())

    def _require_labels(self, batch: Batch) -> None:
        names = {"labels", *self.trainer.label_names}
        if names & set(batch) or not _is_librarys(type(self.trainer).compute_loss) or self.trainer.compute_loss_func:
            return
        raise BatchError(
            f"the trainer's batches have no labels (their keys: {', '.join(map(str, batch))}): give the data set a "
            "column 'labels', or the trainer a collator that makes them, such as "
            "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
        )


class Pairs(TrainerLoss):
    """DPOTrainer and RewardTrainer: a batch's rows are the chosen ones, then the rejected ones."""

    def weight(self, batch: Batch) -> float:
        """See `TrainerLoss.weight`."""
        return batch["input_ids"].shape[0] / 2


class Examples(TrainerLoss):
    """KTOTrainer: one row an example."""

    def weight(self, batch: Batch) -> float:
        """See `TrainerLoss.weight`."""
        return float(len(batch["label"]))  # TRL 1.0 has other names for the tokens


class Rollouts(TrainerLoss):
    """GRPOTrainer: completions that the policy generates and the trainer's rewards judge, as in training's first steps.

    They are those of the first steps indeed: the start leaves the policy as it is, and random states are put back.
    A batch counts by what its loss type is a mean over, completions or their tokens.
    """

    def _first(self, count: int | None) -> list[Batch]:
        loader = _train_loader(self.trainer)
        with same_loader(loader), same_model(self.trainer.model):
            self.trainer.model.train()  # else TRL takes it for an evaluation, with other groups
            rollouts = self._rollouts(loader)
            taken = _take(rollouts, count)
        _require_enough(len(taken), count)
        if not any(batch["advantages"].any() for batch in taken):
            raise BatchError(
                f"all advantages of the {len(taken)} batches are zero: no reward tells the completions of a prompt "
                "apart, so there is no gradient. Take more batches, or a reward with more values, or pass gradients= "
                "of loraga.estimate_gradients on examples of the task"
            )
        return taken

    def _rollouts(self, loader: Iterable[Any]) -> Iterator[Batch]:
        trainer = self.trainer
        trainer._buffered_inputs = None
        kept = trainer.args.steps_per_generation
        with _reading(loader) as prompts:
            for step, batch in enumerate(prompts):
                if step % (kept * trainer.num_iterations) < kept:  # later ones are the same completions again
                    trainer._step = step
                    yield trainer._prepare_inputs(batch)

    def _compute(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        # in eval mode TRL divides by this alone, which spans all that was generated at once
        batch["num_items_in_batch"] = self._tokens(batch) * self.trainer.accelerator.num_processes
        return super()._compute(model, batch)

    def weight(self, batch: Batch) -> float:
        """See `TrainerLoss.weight`."""
        tokens = float(self._tokens(batch))
        if tokens == 0 or self.trainer.loss_type in TOKEN_LOSSES:
            return tokens
        return float(batch["completion_ids"].shape[0])

    def _tokens(self, batch: Batch) -> Tensor:
        mask: Tensor = batch["completion_mask"]
        return (mask * batch["tool_mask"] if "tool_mask" in batch else mask).sum()


TRL_TRAINERS: dict[str, type[TrainerLoss]] = {
    "SFTTrainer": Likelihood,
    "DPOTrainer": Pairs,
    "RewardTrainer": Pairs,
    "KTOTrainer": Examples,
    "GRPOTrainer": Rollouts,
}


def trainer_loss(trainer: Any) -> TrainerLoss:
    """Finds out what kind of loss a trainer has, by the names of its classes: TRL is not imported for it.

    Args:
        trainer: a trainer of transformers or TRL, or of a subclass.

    Returns:
        Its loss.

    Raises:
        AdapterError: if it is no trainer, or one that is not known here.
    """
    kinds = type(trainer).__mro__
    trls = [kind.__name__ for kind in kinds if kind.__module__.partition(".")[0] == "trl"]
    if trls and trls[0] in TRL_TRAINERS:
        return TRL_TRAINERS[trls[0]](trainer)
    is_trainer = any(kind.__name__ == "Trainer" and kind.__module__.startswith("transformers.") for kind in kinds)
    if is_trainer and not trls:
        return Likelihood(trainer)
    raise AdapterError(
        f"initialize_trainer knows transformers' Trainer and Seq2SeqTrainer and TRL's {', '.join(TRL_TRAINERS)}, not "
        f"{type(trainer).__name__}; call loraga.initialize(model, batches, loss=callable(model, batch)) instead"
    )


def _train_loader(trainer: Any) -> Any:
    if trainer.train_dataset is None:
        raise BatchError("the trainer has no train_dataset to take batches from")
    if hasattr(trainer.train_dataset, "__next__"):
        raise BatchError(
            "the train_dataset can be read only once, so that training would miss what is read here; make it start "
            "anew in each __iter__ (datasets.IterableDataset.from_generator does)"
        )
    return trainer.get_train_dataloader()


def _take(batches: Iterable[Any], count: int | None) -> list[Any]:
    taken: list[Any] = []
    try:
        with _reading(batches) as iterator:
            taken.extend(islice(iterator, count))
    except ValueError as error:  # accelerate's where a stream ends at once
        if taken:
            raise
        raise BatchError(f"the trainer's train_dataset gives no batch: {error}") from error
    return taken


@contextmanager
def _reading(batches: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """Iterates; accelerate's iterators are generators, whose end is not to wait for the garbage collector."""
    iterator = iter(batches)
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _require_enough(found: int, count: int | None) -> None:
    if not found:
        raise BatchError("the trainer's train_dataset gives no batch: it is empty, or smaller than a batch it may drop")
    if count is not None and found < count:
        warnings.warn(
            f"the train_dataset ends after {found} batches, and {count} were asked for: those {found} are used. Pass "
            f"batches={found}, or None for one epoch, to say so",
            stacklevel=5,
        )


def _is_librarys(function: Any) -> bool:
    module = getattr(function, "__module__", "").partition(".")[0]
    return module in ("transformers", "trl")
