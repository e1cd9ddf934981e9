"""The README.md beside a trained adapter: what it is, how it was made, what was measured, how to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraga import __version__

from .base_model import BaseModel
from .methods import METHODS
from .recipe_file import recipe_text
from .run_folder import result_name, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .recipe import Recipe
    from .run_folder import RunFolder


def write(recipe: Recipe, metrics: Mapping[str, Any], folder: RunFolder) -> None:
    """Writes the card into the result's folder, in place of the empty one that PEFT writes.

    Args:
        recipe: what was run.
        metrics: the content of metrics.json.
        folder: the run's.
    """
    write_whole(folder / result_name(recipe) / "README.md", text(recipe, metrics))


def text(recipe: Recipe, metrics: Mapping[str, Any]) -> str:
    """The card, with the front matter that the hub reads."""
    method = METHODS[recipe.method]
    library, tags = ("peft", ["lora"]) if method.adapter else ("transformers", [])
    front = [
        f"base_model: {_quoted(BaseModel.of(recipe).address)}",
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        f"tags: [{', '.join([*tags, 'loraga', recipe.method])}]",
    ]
    figures = [f"| {name} | {value} |" for name, value in _figures(metrics).items()]
    parts = [
        "\n".join(["---", *front, "---"]),
        f"# {method.title} of {recipe.model} on {recipe.data}",
        f"{method.what}. Trained with loraga {__version__}.",
        "\n".join(["| | |", "|---|---|", *figures]),
        _how_to_load(recipe) if method.adapter else "",
        f"## Recipe\n\n```yaml\n{recipe_text(recipe)}```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _how_to_load(recipe: Recipe) -> str:
    base = BaseModel.of(recipe)
    kind = "AutoModelForSeq2SeqLM" if base.is_encoder_decoder else "AutoModelForCausalLM"
    where = _quoted(base.address)
    if Path(recipe.model).suffix == ".gguf":
        where += f", gguf_file={_quoted(Path(recipe.model).name)}"
    if recipe.trust_remote_code:
        where += ", trust_remote_code=True"
    return (
        f"It is {METHODS[recipe.method].saved_as} of the original base model:\n\n```python\n"
        "from peft import PeftModel\n"
        f"from transformers import {kind}\n\n"
        f"base = {kind}.from_pretrained({where})\n"
        'model = PeftModel.from_pretrained(base, "this folder")\n```'
    )


def _quoted(text: str) -> str:
    """A text in the quotes that YAML and Python share."""
    return json.dumps(text, ensure_ascii=False)


def _figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    found = {"steps": str(metrics["steps"]), "peak learning rate": f"{metrics['learning_rate']:.3g}"}
    if metrics["train_loss"] is not None:
        found["training loss, mean of the last ten logged steps"] = f"{metrics['train_loss']:.4f}"
    held_out = metrics["held_out"]
    if held_out is not None:
        if held_out["loss"] is not None:
            found[f"loss on {held_out['rows']} held-out rows"] = f"{held_out['loss']:.4f}"
        if held_out["accuracy"] is not None:
            found[f"{held_out['metric']} on these (95 % interval)"] = (
                f"{100 * held_out['accuracy']:.1f} % ({100 * held_out['low']:.1f} to {100 * held_out['high']:.1f})"
            )
        elif held_out["score"] is not None:
            found[f"{held_out['metric']} on these"] = f"{held_out['score']:.4f}"
        found |= {
            f"{name} on these": f"{value:.4f}" if isinstance(value, float) else str(value)
            for name, value in held_out["scores"].items()
        }
    return found
