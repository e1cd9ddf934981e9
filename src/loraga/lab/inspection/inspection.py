"""How much of the full gradient an adapter's rank reaches, layer by layer, before anything is trained.

recipe --data, model--> micro-batches --exact | streaming--> {layer: Spectrum} and one layer's heat map

What is found is a value: pictures, tables and files are made of it elsewhere.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import avg_pool2d

from loraga import estimate_gradients
from loraga.layers import target_layers

from ..errors import LabError, SettingsError
from ..preparation import prepare
from ..quiet import quiet_libraries
from ..recipe_check import nearest
from ..starts import load_base, with_adapter
from .full_gradient import full_gradients
from .layer_kinds import places
from .spectrum import Spectrum, spectrum_of_factors, spectrum_of_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console
    from torch import Tensor, nn

    from loraga.loss import Batch

    from ..progress import Progress
    from ..recipe import Recipe

Estimator = Literal["exact", "streaming"]
MOST_ROWS, MOST_COLUMNS = 320, 480  # of a heat map: more than a picture of this width can show


@dataclass(frozen=True)
class Layer:
    """One layer and what is known of its gradient's singular values."""

    name: str
    kind: str
    block: int | None
    spectrum: Spectrum

    def coverage(self, rank: int) -> float:
        """`Spectrum.coverage` at a rank that is known; NaN at another."""
        share = self.spectrum.coverage(rank)
        return math.nan if share is None else share


@dataclass(frozen=True)
class HeatMap:
    """|G| of one layer, as means over square blocks.

    Attributes:
        layer: its name.
        shape: (d_out, d_in) of its gradient.
        side: rows and columns of a block; those at the right and lower edge may be smaller.
        means: mean of |G| over each block, (ceil(d_out / side), ceil(d_in / side)), float32.
        part_of_rank: rank of the part of G that is shown; None if it is all of G.
    """

    layer: str
    shape: tuple[int, int]
    side: int
    means: Tensor
    part_of_rank: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What one gradient says about every layer.

    Attributes:
        rank: of the adapter that is asked about.
        estimator: how the gradient was found.
        micro_batches: number of them.
        loss_terms: number of loss terms, which are target tokens, that the gradient is the mean over.
        layers: those with a gradient, in the model's order; at least one.
        without_gradient: names of the others.
        heat_map: of one layer.
    """

    rank: int
    estimator: Estimator
    micro_batches: int
    loss_terms: float
    layers: tuple[Layer, ...]
    without_gradient: tuple[str, ...]
    heat_map: HeatMap

    @property
    def is_whole(self) -> bool:
        """Whether every singular value of every layer is known."""
        return all(layer.spectrum.is_whole for layer in self.layers)

    @property
    def largest_known_rank(self) -> int | None:
        """The largest rank whose coverage is known in every layer; None if every one is."""
        partly = [len(layer.spectrum.values) // 2 for layer in self.layers if not layer.spectrum.is_whole]
        return min(partly, default=None)

    @property
    def worst(self) -> Layer:
        """The layer with the lowest coverage at the rank."""
        return min(self.layers, key=lambda layer: layer.coverage(self.rank))

    def median_coverage(self, rank: int) -> float:
        """Median coverage of the layers; NaN where one is not known."""
        return median_coverage(self.layers, rank)

    def kinds(self) -> dict[str, list[Layer]]:
        """The layers of each kind, in the model's order."""
        found: dict[str, list[Layer]] = {}
        for layer in self.layers:
            found.setdefault(layer.kind, []).append(layer)
        return found


def median_coverage(layers: Sequence[Layer], rank: int) -> float:
    """Median coverage of some layers at a rank; NaN where one is not known."""
    shares = [layer.coverage(rank) for layer in layers]
    return math.nan if any(map(math.isnan, shares)) else statistics.median(shares)


def rank_in_half(layers: Sequence[Layer], share: float) -> int | None:
    """The smallest rank with this coverage in at least half of the layers; None if it is not known."""
    return _rank_in(layers, share, math.ceil(len(layers) / 2))


def rank_in_all(layers: Sequence[Layer], share: float) -> int | None:
    """The smallest rank with this coverage in every layer; None if it is not known."""
    return _rank_in(layers, share, len(layers))


def _rank_in(layers: Sequence[Layer], share: float, count: int) -> int | None:
    ranks = (layer.spectrum.rank_for(share) for layer in layers)
    found = sorted(math.inf if rank is None else rank for rank in ranks)[count - 1]
    return None if math.isinf(found) else int(found)


def inspect_recipe(
    recipe: Recipe, layer: str | None, estimator: Estimator, console: Console, progress: Progress
) -> Inspection:
    """Inspects the gradient of the layers that a recipe's adapter is on, on its first micro-batches.

    Args:
        recipe: model, data, rank, target_modules, gradient_batches, seed.
        layer: whose heat map is wanted; None for that with the largest gradient.
        estimator: "exact", or "streaming" where 4 bytes a weight are too many.
        console: told what was cut or dropped.
        progress: told how far it is.

    Returns:
        What was found.

    Raises:
        SettingsError: if there is no such layer, or the data or the model cannot be used.
        LabError: if no layer has a gradient.
    """
    with quiet_libraries():
        prepared = prepare(recipe, console)
        model = with_adapter(load_base(recipe), recipe)
        batches = prepared.data_for(model).micro_batches(recipe, 0, recipe.gradient_batches)
        return inspect_model(model, batches, recipe.rank, progress, layer=layer, estimator=estimator, seed=recipe.seed)


def inspect_model(
    model: nn.Module,
    batches: Sequence[Batch],
    rank: int,
    progress: Progress,
    *,
    layer: str | None = None,
    estimator: Estimator = "exact",
    seed: int = 0,
) -> Inspection:
    """Inspects the gradient of a model's linear layers on some batches; the model is left as it was.

    Args:
        model: a model, or a PeftModel, of which the layers under its adapter are taken.
        batches: dicts of tensors with labels.
        rank: of the adapter that is asked about; the streaming estimator keeps 4 rank singular values.
        progress: told how far it is.
        layer: whose heat map is wanted; None for that with the largest gradient.
        estimator: "exact" holds all layers' gradients on the CPU and decomposes them one by one; "streaming" keeps
            factors of them, so that the coverage is known up to twice the rank.
        seed: of the streaming estimator.

    Returns:
        What was found.

    Raises:
        SettingsError: if there is no such layer, or it has no gradient.
        LabError: if no layer has a gradient.
    """
    names = list(target_layers(model))
    if layer is not None and layer not in names:
        raise SettingsError(f"there is no layer {layer} with an adapter{_meant(layer, names)}")
    find = _exact if estimator == "exact" else _streaming
    spectra, heat_map, loss_terms = find(model, batches, rank, seed, layer, progress)
    where = places(names)
    return Inspection(
        rank=rank,
        estimator=estimator,
        micro_batches=len(batches),
        loss_terms=loss_terms,
        layers=tuple(Layer(name, where[name].kind, where[name].block, spectra[name]) for name in spectra),
        without_gradient=tuple(name for name in names if name not in spectra),
        heat_map=heat_map,
    )


Found = tuple[dict[str, Spectrum], HeatMap, float]  # of each layer with a gradient; of one layer; loss terms


def _exact(
    model: nn.Module, batches: Sequence[Batch], rank: int, seed: int, layer: str | None, progress: Progress
) -> Found:
    del rank, seed  # all of the gradient, and nothing random
    gradients, loss_terms = full_gradients(model, batches, progress)
    norms = {name: float(torch.linalg.vector_norm(gradient)) for name, gradient in gradients.items()}
    shown = _shown_layer(norms, layer)
    names = [name for name, norm in norms.items() if norm > 0]
    costs = {name: max(gradients[name].shape) * min(gradients[name].shape) ** 2 for name in names}
    heat_map = heat_map_of(shown, gradients[shown])
    progress.begin("singular values", sum(costs.values()), 0.0)
    spectra = {}
    for name in names:
        spectra[name] = spectrum_of_matrix(gradients.pop(name))
        progress.advance(costs[name], f"singular values: {name}")
    return spectra, heat_map, loss_terms


def _streaming(
    model: nn.Module, batches: Sequence[Batch], rank: int, seed: int, layer: str | None, progress: Progress
) -> Found:
    progress.begin("gradient", len(batches), 0.0)
    gradients = estimate_gradients(
        model, batches, rank, num_batches=None, seed=seed, loss=_told(progress), progress=False
    )
    norms = {name: gradient.norm for name, gradient in gradients.items()}
    shown = _shown_layer(norms, layer)
    spectra = {name: spectrum_of_factors(gradients[name]) for name, norm in norms.items() if norm > 0}
    chosen = gradients[shown]
    known = None if spectra[shown].is_whole else chosen.columns
    heat_map = heat_map_of(shown, (chosen.U * chosen.S) @ chosen.Vh, known)
    return spectra, heat_map, max(gradient.loss_terms for gradient in gradients.values())


def _told(progress: Progress) -> Callable[[nn.Module, Batch], Tensor]:
    """The model's own loss, each of whose calls counts as a micro-batch done."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = model(**batch).loss
        progress.advance(1, "gradient")
        return value

    return loss


def _shown_layer(norms: Mapping[str, float], layer: str | None) -> str:
    """The layer to draw: the one that was asked for, or that with the largest gradient."""
    largest = max(norms, key=lambda name: norms[name])
    if norms[largest] == 0:
        raise LabError("every layer's gradient is zero: there is nothing to inspect; look at the data and the loss")
    if layer is not None and norms.get(layer, 0.0) == 0:
        raise SettingsError(f"layer {layer} has no gradient: the loss does not depend on it; {largest} has the largest")
    return layer or largest


def _meant(layer: str, names: Sequence[str]) -> str:
    last = layer.rpartition(".")[2]
    alike = [name for name in names if name.rpartition(".")[2] == last]  # q_proj is meant where q_proj is written
    meant = nearest(layer, alike) or next(iter(alike), None) or nearest(layer, names)
    return f"; did you mean {meant}?" if meant else f"; the layers are called like {names[0]}"


def heat_map_of(layer: str, gradient: Tensor, part_of_rank: int | None = None) -> HeatMap:
    """Shrinks |G| to a size that a picture can show.

    Args:
        layer: its name.
        gradient: (d_out, d_in).
        part_of_rank: rank of the part of the gradient that this is; None if it is all of it.

    Returns:
        The means of |G| over square blocks, the smallest ones of which at most 320 by 480 are left.
    """
    d_out, d_in = gradient.shape
    side = math.ceil(max(d_out / MOST_ROWS, d_in / MOST_COLUMNS, 1))
    pooled = avg_pool2d(gradient.float().abs()[None, None], side, ceil_mode=True)[0, 0]  # partial blocks: own mean
    return HeatMap(layer, (d_out, d_in), side, pooled.cpu(), part_of_rank)
