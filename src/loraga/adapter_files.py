"""The files of an adapter directory, read without a model: JSON, and the header of the weights.

No tensor is read, no pickle is opened, and what is read is bounded in size.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
RECIPE, REPORT = "loraga.json", "loraga_report.json"
RECIPE_FORMAT = 1
PRESENT, MISSING, TRUNCATED, DAMAGED, NOT_OPENED = "present", "missing", "truncated", "damaged", "not opened"

HEADER_LENGTH_BYTES = 8  # a safetensors file: length of the header, header (JSON), tensors one after the other
LARGEST_HEADER = 100_000_000  # the format's own limit
LARGEST_JSON = 50_000_000
NAMES_SHOWN = 8

FACTOR = re.compile(r"^(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.weight)?$")


@dataclass(frozen=True)
class AdapterFiles:
    """What the files of a directory say.

    Attributes:
        path: the directory.
        config: adapter_config.json.
        keys: of the tensors in the weight file.
        ranks: {layer: rank on disk}.
        files: {file: its state}.
        defect: what is wrong with the weight file; empty if nothing is.
        recipe: loraga.json; empty where there is none, or one of another adapter.
        report: loraga_report.json; empty where there is none.
        notes: what else was found, a sentence each.
    """

    path: Path
    config: dict[str, Any]
    keys: frozenset[str]
    ranks: dict[str, int]
    files: dict[str, str]
    defect: str
    recipe: dict[str, Any]
    report: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def start(self) -> str:
        """What init_lora_weights says, in lower case: "true", "lora_ga" and so on."""
        return str(self.config.get("init_lora_weights", True)).lower()

    @property
    def rslora(self) -> bool:
        """Whether the scaling is alpha / sqrt(r)."""
        return bool(self.config.get("use_rslora"))

    @property
    def alpha(self) -> float | None:
        """The config's lora_alpha, if it is a number."""
        alpha = self.config.get("lora_alpha")
        return alpha if isinstance(alpha, (int, float)) else None

    @property
    def distinct_ranks(self) -> tuple[int, ...]:
        """Ranks in the weight file, or in the config where the file cannot be read."""
        patterns = self.config.get("rank_pattern") or {}
        stated = [self.config.get("r"), *patterns.values()]
        return tuple(sorted(set(self.ranks.values()) or {rank for rank in stated if isinstance(rank, int)}))

    @property
    def half_ranks(self) -> tuple[int, ...]:
        """Ranks of the trained part where a start is stored beside it."""
        return tuple(rank // 2 for rank in self.distinct_ranks)

    @property
    def has_odd_rank(self) -> bool:
        """Whether these ranks cannot be twice something."""
        return any(rank % 2 for rank in self.distinct_ranks)

    @property
    def has_whole_alpha(self) -> bool:
        """Whether lora_alpha cannot be a whole number times sqrt(2)."""
        return self.alpha is not None and float(self.alpha).is_integer()

    @property
    def may_be_converted(self) -> bool:
        """Whether PEFT's conversion could have written these, which doubles ranks and keeps the scaling."""
        if not self.rslora:
            return not self.has_odd_rank
        refused = self.config.get("rank_pattern") or self.config.get("alpha_pattern")
        return not self.has_odd_rank and not self.has_whole_alpha and not refused


def read_adapter_files(path: Path) -> AdapterFiles:
    """Reads what can be known without reading a tensor.

    Args:
        path: the directory.

    Returns:
        What its files say; a damaged or missing weight file is told in `files` and `defect`.

    Raises:
        SaveError: if there is no readable adapter_config.json; the message names adapters in subdirectories.
    """
    config = _config(path)
    keys, ranks, state, defect = _weights(path)
    files, notes = {CONFIG: PRESENT, WEIGHTS: state}, []
    if (path / PICKLE).exists():
        files[PICKLE] = NOT_OPENED
        if state != MISSING:
            notes.append(f"{PICKLE} is a pickle; PEFT takes {WEIGHTS} before it")
    recipe: dict[str, Any] = {}
    report: dict[str, Any] = {}
    if (path / RECIPE).exists():
        recipe, files[RECIPE] = _companion(path / RECIPE)
        if files[RECIPE] == DAMAGED or recipe.get("format") != RECIPE_FORMAT:
            notes.append(f"{RECIPE} is damaged or of another version: PEFT does not need it, loraga.load does")
        elif ranks and any(ranks.get(layer) != 2 * rank for layer, rank in recipe_ranks(recipe).items()):
            notes.append(f"{RECIPE} speaks of another adapter than {WEIGHTS}: PEFT does not need it, remove it")
            recipe = {}
    if (path / REPORT).exists():
        report, files[REPORT] = _companion(path / REPORT)
    nested = _adapters_below(path)
    if nested:
        notes.append(f"it also holds adapters in {_listed(nested)}")
    return AdapterFiles(path, config, frozenset(keys), ranks, files, defect, recipe, report, tuple(notes))


def _config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise SaveError(f"{path} does not exist")
    if not path.is_dir():
        raise SaveError(f"{path} is a file; name the directory that holds {CONFIG}")
    if not (path / CONFIG).is_file():
        raise SaveError(f"{path} holds no {CONFIG}; {_instead(path)}")
    config, defect = _json(path / CONFIG)
    if not defect and not isinstance(config.get("peft_type"), str):
        defect = "it has no peft_type"
    if not defect and not isinstance(config.get("rank_pattern") or {}, dict):
        defect = "rank_pattern is no object"
    if defect:
        raise SaveError(f"{path / CONFIG} is damaged: {defect}")
    return config


def _instead(path: Path) -> str:
    """What a directory holds that is not an adapter."""
    nested = _adapters_below(path)
    if nested:
        return f"there are adapters in {_listed(nested)}: name one of them"
    checkpoints = sorted(folder.name for folder in path.glob("checkpoint-*") if folder.is_dir())
    if checkpoints:
        return f"it holds {_listed(checkpoints)}, and none of them has one either"
    for name in (WEIGHTS, PICKLE):
        if (path / name).exists():
            return f"{name} is there, and cannot be used without it"
    if (path / "config.json").exists():
        return "its config.json is that of a whole model, which is loaded without PEFT"
    return "it is not an adapter directory"


def _adapters_below(path: Path) -> list[str]:
    """Subdirectories that hold an adapter, checkpoints by rising number."""
    folders = [folder.parent.name for folder in path.glob(f"*/{CONFIG}")]
    return sorted(folders, key=lambda name: (re.sub(r"\d+$", "", name), int((re.findall(r"\d+$", name) or [0])[0])))


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _companion(path: Path) -> tuple[dict[str, Any], str]:
    data, defect = _json(path)
    return data, DAMAGED if defect else PRESENT


def recipe_ranks(recipe: Mapping[str, Any]) -> dict[str, int]:
    """{layer: trained rank} of loraga.json, as far as it can be read."""
    ranks = recipe.get("ranks")
    return (
        {str(layer): rank for layer, rank in ranks.items() if isinstance(rank, int)} if isinstance(ranks, dict) else {}
    )


def _json(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object and "", or {} and what is wrong with the file."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_JSON + 1)
        if len(text) > LARGEST_JSON:
            return {}, f"it is longer than {LARGEST_JSON} bytes"
        data = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        return {}, str(error)
    return (data, "") if isinstance(data, dict) else ({}, "it holds no object")


def _weights(path: Path) -> tuple[list[str], dict[str, int], str, str]:
    """Keys, {layer: rank}, state and defect of the weight file, from its header."""
    file = path / WEIGHTS
    if not file.is_file():
        pickled = (path / PICKLE).exists()
        only = f"its weights are in {PICKLE} only, a pickle, which is not opened here" if pickled else ""
        return [], {}, MISSING, only or f"{WEIGHTS} is missing"
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
            if length > LARGEST_HEADER:
                return [], {}, DAMAGED, f"{WEIGHTS} is damaged: it claims a header of {length} bytes"
            if HEADER_LENGTH_BYTES + length > size:
                return [], {}, TRUNCATED, f"{WEIGHTS} is cut short within its header"
            header = json.loads(stream.read(length))
        shapes = {key: entry["shape"] for key, entry in header.items() if key != "__metadata__"}
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        ranks = {
            match["layer"]: int(shape[0])
            for key, shape in shapes.items()
            if (match := FACTOR.match(key)) and match["factor"] == "A"
        }
        claimed = HEADER_LENGTH_BYTES + length + int(end)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        return [], {}, DAMAGED, f"{WEIGHTS} is damaged: {error!r}"
    if claimed == size:
        return list(shapes), ranks, PRESENT, ""
    state = TRUNCATED if claimed > size else DAMAGED
    told = "is cut short" if state == TRUNCATED else "is damaged"
    return list(shapes), ranks, state, f"{WEIGHTS} {told}: it has {size} bytes, and its header says {claimed}"
