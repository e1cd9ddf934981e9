"""`loraga_residual.json`: what says of a model directory that its weights are W - eta B0 A0 and not the original ones.

    FOLDER/           the residual base: config, weights, tokenizer, loraga_residual.json
    FOLDER/adapter/   the start, A0 and B0, for tools that know only plain PEFT to train on

An adapter that such a tool has trained lies elsewhere and holds nothing of ours: its adapter_config.json names the base
that it was trained on, and this file is found there. No tensor is read here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD, START = "loraga_residual.json", "adapter"
MIRRORED, RESIDUAL = "mirrored", "residual"  # starts for other tools, in a report where others name their offset
FORMAT = 1


@dataclass(frozen=True)
class ResidualLayer:
    """One layer whose weight has a start subtracted.

    Attributes:
        rank: of the start.
        scaling: eta.
        probes: b_i^T W' a_i of the residual weight W', for the i-th column of B0 and row of A0; by them the residual
            base is told from the original, and both from others.
        rounding: the share of ||eta B0 A0||_F that rounding lost.
    """

    rank: int
    scaling: float
    probes: tuple[float, ...]
    rounding: float


@dataclass(frozen=True)
class ResidualRecord:
    """Content of `loraga_residual.json`.

    Attributes:
        original: name or path of the original base; empty where it had none.
        layers: {layer: what was subtracted from it}.
        sha256: `tensor_checksum` of the start's weight file.
        version: of loraga.
        format: of this file.
    """

    original: str
    layers: dict[str, ResidualLayer]
    sha256: str
    version: str = __version__
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        """Writes the file into a model directory."""
        (directory / RECORD).write_text(json.dumps(asdict(self), indent=2))


def read_record(directory: Path) -> ResidualRecord | None:
    """Reads a model directory's record.

    Args:
        directory: a model directory, or something else.

    Returns:
        The record, or None where there is none: the weights are the original ones.

    Raises:
        SaveError: if it is damaged or of another format.
    """
    path = directory / RECORD
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise SaveError(f"{path} has format {data['format']!r}; this version of loraga reads format {FORMAT}")
        layers = {str(name): _layer(**facts) for name, facts in data["layers"].items()}
        return ResidualRecord(str(data["original"]), layers, str(data["sha256"]), str(data["version"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SaveError(f"{path} is damaged ({error!r}); copy the residual base again") from error


def _layer(rank: int, scaling: float, probes: list[float], rounding: float) -> ResidualLayer:
    return ResidualLayer(int(rank), float(scaling), tuple(map(float, probes)), float(rounding))


def residual_base_of(
    adapter: Path, config: Mapping[str, Any], given: str = ""
) -> tuple[Path, ResidualRecord] | tuple[None, None]:
    """Finds the residual base that an adapter is for.

    Args:
        adapter: the adapter's directory.
        config: its adapter_config.json.
        given: name or path of the base model that it is to be loaded onto, which may be a residual base that has moved.

    Returns:
        The directory and its record, or None twice: nothing speaks of a residual base.

    Raises:
        SaveError: if a record is damaged.
    """
    named = str(config.get("base_model_name_or_path") or "")
    places = [Path(named)] if named else []
    places += [adapter.resolve().parent] if adapter.resolve().name == START else []
    places += [Path(given)] if given else []
    for place in places:
        record = read_record(place)
        if record is not None and not (named and named == record.original):
            return place, record
    return None, None
