"""Measures what is on the disk, on a recipe's held-out rows: the base model, a saved adapter, a saved model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.utils import CONFIG_NAME

from .arguments import training_arguments
from .base_model import BaseModel, misfit, require_loadable
from .errors import SettingsError
from .evaluation import Evaluation, evaluate
from .judging.judge_run import rated
from .preparation import Prepared, digest_of, prepare
from .quiet import quiet_libraries
from .recipe_file import recipe_values
from .run_folder import BASE, EVALUATION, VALIDATION, folder_of, result_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from .examples import Example
    from .progress import Progress
    from .recipe import Recipe
    from .run_folder import RunFolder

EVALUATION_KEYS = (
    *("model", "dtype", "data", "data_options", "split", "held_out", "held_out_options", "held_out_split"),
    *(
        "held_out_rows",
        "prompt",
        "target",
        "labels",
        "chat",
        "template",
        "sequence_length",
        "too_long",
        "seed",
        "data_seed",
        "metric",
    ),
    *("per_device_eval_batch_size", "max_new_tokens", "samples", "temperature", "top_p"),
)
SETS = ("target_modules", "exclude_modules")  # of PEFT's configurations
MERGEABLE = torch.float32  # in half precision a merged weight rounds the adapter away


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated, where its rows are, and what came out."""

    title: str
    file: Path
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {"evaluated": self.title, "rows_file": str(self.file), **self.evaluation.to_dict()}


def evaluate_recipe(
    recipe: Recipe, adapter: Path | None, base: bool, output: Path | None, console: Console, progress: Progress
) -> Evaluated:
    """Evaluates on a recipe's held-out rows.

    Args:
        recipe: names base model, rows, metric, and the folder of its run.
        adapter: a saved adapter or model; None for the result of the recipe's run.
        base: evaluate the base model alone.
        output: JSON lines, a row each; by default in the run's folder.
        console: where it says what it does.
        progress: told the rows that are done.

    Returns:
        What was measured.

    Raises:
        SettingsError: if there is nothing to evaluate.
    """
    folder = folder_of(recipe)
    if adapter is not None and not (adapter / "config.json").is_file() and not (adapter / CONFIG_NAME).is_file():
        raise SettingsError(f"{adapter} holds no {CONFIG_NAME} and no config.json, so there is nothing to evaluate")
    saved = None if base else adapter or _result(recipe)
    file = output or (folder / BASE if base else folder / EVALUATION if adapter is None else adapter / EVALUATION)
    file.parent.mkdir(parents=True, exist_ok=True)
    with quiet_libraries():
        evaluation = evaluate_saved(recipe, prepare(recipe, console), saved, file, progress)
    return Evaluated(f"{recipe.model}, base model" if saved is None else str(saved), file, evaluation)


def _result(recipe: Recipe) -> Path:
    result = folder_of(recipe) / result_name(recipe)
    if result.is_dir():
        return result
    raise SettingsError(
        f"{result.parent} holds no trained adapter; train first, or name one with --adapter, or give --base"
    )


def evaluate_saved(
    recipe: Recipe, prepared: Prepared, saved: Path | None, file: Path, progress: Progress
) -> Evaluation:
    """Measures what is on the disk: the original base with a saved adapter, as plain PEFT loads them.

    Args:
        recipe: names the base model, the metric and how answers are generated.
        prepared: with held-out rows.
        saved: an adapter's folder, that of a whole model, or None for the base model.
        file: JSON lines for the single rows.
        progress: told the rows that are done.

    Returns:
        Loss and metric.
    """
    if not prepared.held_out:
        raise SettingsError("there are no held-out rows to evaluate on; give held_out or held_out_rows")
    settings = evaluation_settings(recipe, saved, prepared.held_out)
    model = load_saved(recipe, saved)
    found = evaluate(model, prepared.tokenizer, prepared.held_out, recipe, file, settings, progress)
    return rated(recipe, prepared.held_out, found, file, saved, progress)


def evaluate_result(
    recipe: Recipe, prepared: Prepared, folder: RunFolder, progress: Progress
) -> dict[str, Evaluation | None]:
    """Measures a run's saved result on the rows for validation and on the held-out rows.

    Args:
        recipe: the run's.
        prepared: its rows.
        folder: the run's; the single rows go there.
        progress: told the rows that are done.

    Returns:
        {"validation": loss, and with validation_metric the metric; "held_out": loss and metric}; None for no rows.
    """
    plain = recipe if recipe.validation_metric else replace(recipe, metric="none", samples=1)
    parts = {
        "validation": (prepared.validation, plain, VALIDATION, "validation"),
        "held_out": (prepared.held_out, recipe, EVALUATION, "evaluation"),
    }
    found: dict[str, Evaluation | None] = dict.fromkeys(parts)
    saved = folder / result_name(recipe)
    model = load_saved(recipe, saved) if any(rows for rows, *_ in parts.values()) else None
    for part, (rows, asked, file, what) in parts.items():
        if rows:
            settings = evaluation_settings(asked, saved, rows)
            measured = evaluate(model, prepared.tokenizer, rows, asked, folder / file, settings, progress, what)
            found[part] = rated(asked, rows, measured, folder / file, saved, progress)
    return found


def evaluation_settings(recipe: Recipe, saved: Path | None, rows: Sequence[Example]) -> dict[str, Any]:
    """What an evaluation depends on: saved model and rows by their checksums too, the rest by the recipe's keys."""
    checksums = {}
    if saved is not None:
        checksums = {file.name: _file_checksum(file) for file in sorted(saved.glob("*.safetensors"))}
        checksums |= {file.name: _values_checksum(file) for file in sorted(saved.glob("*config.json"))}
    values = recipe_values(recipe)
    return {"saved": checksums, "rows": digest_of(rows), **{key: values[key] for key in EVALUATION_KEYS}}


def _file_checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _values_checksum(file: Path) -> str:
    """Of a JSON file's values: PEFT writes a set in another order in another process."""
    values = json.loads(file.read_text())
    ordered = {
        key: sorted(value) if key in SETS and isinstance(value, list) else value for key, value in values.items()
    }
    return hashlib.sha256(json.dumps(ordered, sort_keys=True).encode()).hexdigest()


def load_saved(recipe: Recipe, saved: Path | None) -> Any:
    """The base model with a saved adapter merged into it (in float32), or a saved whole model, in eval mode."""
    device = training_arguments(recipe).device
    if saved is not None and not (saved / CONFIG_NAME).is_file():
        return BaseModel(str(saved), recipe.dtype, recipe.trust_remote_code).load().to(device)
    model = BaseModel.of(recipe).load().to(device)
    if saved is None:
        return model
    require_loadable(saved)
    try:
        model = PeftModel.from_pretrained(model, str(saved))
    except RuntimeError as cause:
        raise SettingsError(misfit(saved, recipe.model, cause)) from cause
    mergeable = all(parameter.dtype == MERGEABLE for parameter in model.parameters())
    return (model.merge_and_unload() if mergeable else model).eval()
