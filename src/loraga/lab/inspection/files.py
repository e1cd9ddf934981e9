"""The folder that an inspection leaves: inspect.json, inspect.md and four pictures, all of them or none.

inspect.json           everything, a line a layer
inspect.md             the answer, and tables of kinds, worst and best layers
gradient.png           heat map of one layer's gradient
spectrum.png           singular values of every layer
coverage.png           coverage against rank
coverage_by_layer.png  coverage at the recipe's rank, block by kind
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraga.files import staged_directory

from ..doctor import versions
from ..errors import SettingsError
from ..recipe_file import recipe_values
from ..run_folder import differences, read_json
from .figures import draw_all
from .inspection import rank_in_all, rank_in_half
from .text import PICTURES, SHARE, markdown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..recipe import Recipe
    from .inspection import Inspection, Layer

FORMAT = "loraga-inspection-1"
JSON, PAGE = "inspect.json", "inspect.md"
FILES = (JSON, PAGE, *PICTURES)
VALUES_WRITTEN = 256  # singular values of a layer: as many as rank 128 covers
DIGITS = 6


def require_free(folder: Path, recipe: Recipe) -> None:
    """Refuses a folder that holds something else than an inspection of the same recipe.

    Args:
        folder: where the files are to go; it need not be there.
        recipe: what is to be inspected.

    Raises:
        SettingsError: if it is not free.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SettingsError(f"{folder} is a file, not a folder; name another one with --output")
    if others := sorted(each.name for each in folder.iterdir() if each.name not in FILES):
        raise SettingsError(f"{folder} holds something else ({others[0]}); name another folder with --output")
    if (folder / JSON).exists() and (differing := differences(read_json(folder / JSON).get("recipe", {}), recipe)):
        raise SettingsError(
            f"{folder} holds the inspection of another recipe ({differing}); remove it, or name another folder with "
            "--output"
        )


def write(inspection: Inspection, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Writes an inspection's files; they appear together, and an error leaves the folder as it was.

    Args:
        inspection: what was found.
        recipe: what was inspected.
        folder: where they go.

    Returns:
        The content of inspect.json.

    Raises:
        SaveError: if they cannot be written.
    """
    content, subject = content_of(inspection, recipe), subject_of(recipe)
    with staged_directory(folder) as staging:
        (staging / JSON).write_text(_text(content), encoding="utf-8")
        (staging / PAGE).write_text(markdown(inspection, subject), encoding="utf-8")
        draw_all(inspection, subject, staging)
    return content


def subject_of(recipe: Recipe) -> str:
    """What is inspected, in words: "MODEL on DATA", without their folders."""
    return f"{Path(recipe.model).name} on {Path(recipe.data).name}"


def content_of(inspection: Inspection, recipe: Recipe) -> dict[str, Any]:
    """What inspect.json holds.

    Args:
        inspection: what was found.
        recipe: what was inspected.

    Returns:
        Plain data; a share that is not known is None.
    """
    ranks = sorted({*(2**power for power in range(8)), inspection.rank})
    worst = inspection.worst
    return {
        "format": FORMAT,
        "estimator": inspection.estimator,
        "singular_values": f"all are known; the first {VALUES_WRITTEN} are written"
        if inspection.is_whole
        else "where `values_known` is less than the smaller side, the tail is known only in norm",
        "micro_batches": inspection.micro_batches,
        "loss_terms": inspection.loss_terms,
        "rank": inspection.rank,
        "median": {
            "coverage": {str(rank): _number(inspection.median_coverage(rank)) for rank in ranks},
            "norm": _number(statistics.median(layer.spectrum.norm for layer in inspection.layers)),
        },
        "lowest": {
            "layer": worst.name,
            "coverage": {str(rank): _number(_lowest(inspection.layers, rank)) for rank in ranks},
        },
        "rank_for_90_percent": {
            "in_half_of_the_layers": rank_in_half(inspection.layers, SHARE),
            "in_all_layers": rank_in_all(inspection.layers, SHARE),
            "largest_known": inspection.largest_known_rank,
        },
        "heat_map": inspection.heat_map.layer,
        "layers_without_gradient": list(inspection.without_gradient),
        "versions": {name: each["version"] for name, each in versions().items()},
        "recipe": recipe_values(recipe),
        "layers": {layer.name: _of_layer(layer, ranks) for layer in inspection.layers},
    }


def _of_layer(layer: Layer, ranks: Iterable[int]) -> dict[str, Any]:
    spectrum = layer.spectrum
    return {
        "kind": layer.kind,
        "block": layer.block,
        "shape": list(spectrum.shape),
        "norm": _number(spectrum.norm),
        "sum_of_squares": _number(spectrum.squares),
        "values_known": len(spectrum.values),
        "rank_for_90_percent": spectrum.rank_for(SHARE),
        "coverage": {str(rank): _number(layer.coverage(rank)) for rank in ranks},
        "singular_values": [_number(value) for value in spectrum.values[:VALUES_WRITTEN]],
    }


def _lowest(layers: Iterable[Layer], rank: int) -> float:
    shares = [layer.coverage(rank) for layer in layers]
    return math.nan if any(map(math.isnan, shares)) else min(shares)


def _number(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _text(content: dict[str, Any]) -> str:
    """JSON with a line a layer: two hundred layers of 256 values can then still be looked through."""
    head = json.dumps({name: value for name, value in content.items() if name != "layers"}, indent=2)
    layers = ",\n".join(f"    {json.dumps(name)}: {json.dumps(each)}" for name, each in content["layers"].items())
    return f'{head.removesuffix("}").rstrip()},\n  "layers": {{\n{layers}\n  }}\n}}\n'
