"""transformers' TrainingArguments of a recipe; they check their own values, before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import RecipeError
from .recipe_check import shown, words

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from .recipe import Recipe

# Where a recipe's key and TrainingArguments' name mean the same, both are spelt alike.
SHARED = (
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "logging_steps",
    "save_steps",
    "save_total_limit",
)

REFUSALS = (ValueError, TypeError, RuntimeError, ImportError, NotImplementedError, OSError)  # a file that is not there


def training_arguments(recipe: Recipe, learning_rate: float | None = None) -> TrainingArguments:
    """Makes the arguments of a run.

    Args:
        recipe: what somebody wrote.
        learning_rate: the peak, where the recipe says auto; None while it is not known yet.

    Returns:
        The arguments, checked by transformers.

    Raises:
        RecipeError: if transformers refuses a value.
    """
    from transformers import TrainingArguments

    _require_types(recipe.trainer, get_type_hints(TrainingArguments))
    rate = learning_rate if recipe.learning_rate == "auto" else recipe.learning_rate
    values: dict[str, Any] = {
        "remove_unused_columns": False,  # the collator takes whole examples
        "dataloader_pin_memory": False,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "report_to": "none",
        "disable_tqdm": True,
        **{name: getattr(recipe, name) for name in SHARED},
        "max_steps": recipe.max_steps or -1,
        "data_seed": recipe.seed if recipe.data_seed is None else recipe.data_seed,
        "activation_checkpointing": recipe.gradient_checkpointing,
        "output_dir": recipe.output_dir,
        **({} if rate is None else {"learning_rate": rate}),
        **recipe.trainer,
    }
    try:
        return TrainingArguments(**values)
    except REFUSALS as cause:
        said = " ".join(str(cause).split())
        tried = {name: values[name] for name in dict.fromkeys((*SHARED, *recipe.trainer))}
        what = ", ".join(_refused_alone(tried, recipe.output_dir, str(cause))) or "a value"
        raise RecipeError([f"transformers.TrainingArguments refuses {what} ({said})"]) from cause


def _refused_alone(values: dict[str, Any], output_dir: str | None, said: str) -> list[str]:
    """Each "name: value" of which transformers says the same without the others: what it says seldom names one."""
    from transformers import TrainingArguments

    found = []
    for name, value in values.items():
        try:
            TrainingArguments(output_dir=output_dir, **{name: value})
        except REFUSALS as cause:
            if str(cause) == said:
                found.append(f"{name}: {shown(value)}")
    return found


def _require_types(values: dict[str, Any], types: dict[str, Any]) -> None:
    """Refuses what TrainingArguments would keep unseen and stumble over in the middle of a run."""
    problems = []
    for name, value in values.items():
        adapter = TypeAdapter(types[name], config=ConfigDict(strict=True))
        try:
            adapter.validate_python(value)
        except ValidationError:
            problems.append(f"{name} takes {words(adapter.json_schema())}, not {shown(value)}")
    if problems:
        raise RecipeError(problems)
