"""What a method does otherwise than all others in training: its optimizer, its callbacks, what it saves.

METHODS names an entry of `OWN`; most are trained as Trainer trains.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft.optimizers import create_loraplus_optimizer
from transformers import Trainer

from .adalora import STATE, AdaLoraSchedule, save_as_plain_lora
from .methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch.optim import Optimizer
    from transformers import TrainerCallback, TrainingArguments

    from .recipe import Recipe


def _save_pretrained(model: Any, directory: Path) -> None:
    model.save_pretrained(str(directory))


@dataclass(frozen=True)
class OwnTraining:
    """What a method does otherwise.

    Attributes:
        optimizer: makes it from the model and Trainer's arguments; None for Trainer's own.
        callbacks: Trainer's.
        checkpoint_files: what they add to each checkpoint, without which no run can go on from it.
        save: writes the trained model into a folder.
        measuring: the model's state in which its learning rate is suggested.
        measured_rate: how many times the recipe's learning_rate the one that is measured then is.
    """

    optimizer: Callable[[Any, TrainingArguments], Optimizer] | None = None
    callbacks: tuple[TrainerCallback, ...] = ()
    checkpoint_files: tuple[str, ...] = ()
    save: Callable[[Any, Path], None] = _save_pretrained
    measuring: Callable[[Any], AbstractContextManager[None]] = nullcontext
    measured_rate: float = 1.0


AS_USUAL = OwnTraining()


def own_training(recipe: Recipe) -> OwnTraining:
    """What a recipe's method does otherwise in training."""
    return OWN[METHODS[recipe.method].training](recipe)


def adamw(recipe: Recipe) -> OwnTraining:
    """Nothing: the optimizer that the recipe names, AdamW by default, with one learning rate."""
    return AS_USUAL


def lora_plus(recipe: Recipe) -> OwnTraining:
    """LoRA+ (arXiv 2402.12354): lambda = eta_B / eta_A, where eta_A is the recipe's learning_rate."""

    def optimizer(model: Any, arguments: TrainingArguments) -> Optimizer:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        return create_loraplus_optimizer(
            model,
            kind,
            loraplus_lr_ratio=recipe.loraplus_lr_ratio,
            loraplus_weight_decay=arguments.weight_decay,
            **settings,
        )

    return OwnTraining(optimizer=optimizer, measuring=_of_B_alone, measured_rate=recipe.loraplus_lr_ratio)


def adalora(recipe: Recipe) -> OwnTraining:
    """AdaLoRA (arXiv 2303.10512): ranks on a schedule, orthogonality in the training loss, a plain LoRA as result."""
    return OwnTraining(callbacks=(AdaLoraSchedule(recipe),), checkpoint_files=(STATE,), save=save_as_plain_lora)


OWN: dict[str, Callable[[Recipe], OwnTraining]] = {each.__name__: each for each in (adamw, lora_plus, adalora)}


@contextmanager
def _of_B_alone(model: Any) -> Iterator[None]:
    """Freezes A, whose steps are small beside those of B; at the start it would not move anyway, since B is zero."""
    frozen = [weight for name, weight in model.named_parameters() if ".lora_A." in name and weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(True)
