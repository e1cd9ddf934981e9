"""`initialize`: batches -> gradients -> A0, B0 -> the adapter of a PeftModel, in place and all or nothing."""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from .adapter import carry, uncarry
from .errors import AdapterError, GradientError, OffsetError, ScalingError
from .estimate import Estimator, estimate_gradients
from .layers import active_adapter, base_layer, lora_layers, only_adapter, require_unmerged, without_lora
from .loss import one_example, take_batches
from .offset import attach_offset, detach_offset, trained_factors
from .outputs import are_equal, model_outputs, relative_change
from .passes import gradient_pass, same_random_states
from .preconditions import (
    layers_without_gradient,
    require_choice,
    require_fitting,
    require_peft_model,
    require_plain_lora,
    require_scaling,
    require_unchanged_base,
    require_untrained,
    stop_or_warn,
    unsupported_layers,
    warn_of_few_directions,
)
from .quantization import require_gradients
from .report import Report, total_cosine, total_coverage
from .scheme import SCHEMES, Factors, Stability
from .sharding import whole, write_whole
from .start import LayerStart, compute_starts
from .weights import fold_offset, require_foldable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    from .gradient import LowRankGradient
    from .loss import Batch, LossFunction, WeightFunction

Offset = Literal["adapter", "none", "weights"]
Missing = Literal["error", "lora"]

DEFAULT_GAMMA = {"adapter": 16.0, "weights": 16.0, "none": 65536.0}

logger = logging.getLogger("loraga")


def initialize(
    model: nn.Module,
    batches: Iterable[Batch] | None = None,
    *,
    gamma: float | None = None,
    num_batches: int | None = 8,
    scheme: str = "lora_ga",
    stability: Stability = "forward",
    offset: Offset = "adapter",
    estimator: Estimator = "streaming",
    loss: LossFunction | None = None,
    weight: WeightFunction | None = None,
    gradients: Mapping[str, LowRankGradient] | None = None,
    on_missing: Missing = "error",
    adapter_name: str | None = None,
    seed: int = 0,
    check: bool = True,
    max_change: float = 1e-2,
    allow_rounding: bool = False,
    keep_original: bool = False,
    progress: bool = True,
) -> Report:
    """Starts a LoRA adapter along the full gradient (LoRA-GA, arXiv 2407.05000), in place.

    The factors are written into the adapter's own parameters, so that optimizers made before stay valid. Whatever
    goes wrong, the model is left as it was.

    Args:
        model: a PeftModel with an untrained LoRA adapter, `LoraConfig(use_rslora=True)` for LoRA-GA.
        batches: dicts of tensors with labels; the first num_batches are used.
        gamma: scale, ||eta B0 A0|| falls as 1 / gamma; by default 16 with an offset, 65536 with offset="none".
        num_batches: micro-batches to use at most; None uses all.
        scheme: "lora_ga", or an ablation of the paper's Table 3: "gaussian", "stable_output", "gradient".
        stability: Theorem 3.2's choice, "forward" (the paper's) or "backward".
        offset: how the function is kept. "adapter" subtracts the start beside the adapter; "none" subtracts nothing,
            because the start is so small; "weights" folds it into the base weights, as the paper does.
        estimator: "streaming" (factors only) or "exact" (the paper's Algorithms 1 and 2).
        loss: callable(model, batch) -> mean loss; by default the model's own.
        weight: callable(batch) -> number of loss terms; by default counted from the labels.
        gradients: of an earlier `estimate_gradients`, used instead of estimating.
        on_missing: what to do with a layer that has no gradient or cannot be started, "error" or "lora" (leave it as
            plain LoRA and say so).
        adapter_name: the adapter; by default the active one.
        seed: of every random choice made here; the global random states are not touched.
        check: compare the model's outputs on the first batch (with offset="adapter" on one example of it) before and
            after, and undo everything if they moved.
        max_change: largest relative change of the outputs that offset="none" may make.
        allow_rounding: accept offset="weights" on half-precision weights.
        keep_original: with offset="weights", keep the original weights on the CPU for `disable_adapter()`.
        progress: show a progress bar with the time left.

    Returns:
        What was done, layer by layer.

    Raises:
        AdapterError: if the model has no untrained, unmerged LoRA adapter of this name, or a base without gradients.
        BatchError: if the batches cannot be used.
        GradientError: if a layer has no gradient, or one that does not fit.
        OffsetError: if the function cannot be kept in the way asked for.
        ScalingError: if a layer's scaling is not the scheme's.
    """
    started = time.monotonic()
    plan = _Plan(
        scheme=scheme,
        stability=stability,
        offset=offset,
        gamma=DEFAULT_GAMMA.get(offset, math.nan) if gamma is None else gamma,
        on_missing=on_missing,
        seed=seed,
        loss=loss,
        max_change=max_change,
        allow_rounding=allow_rounding,
    )
    peft_model = require_peft_model(model)
    name = adapter_name or active_adapter(peft_model)
    layers, skipped = _startable_layers(peft_model, name, plan)
    if check and offset == "none" and batches is None:
        raise OffsetError("offset='none' must look at how far the outputs move: pass batches, or check=False")
    with same_random_states():
        taken = None if batches is None else take_batches(batches, num_batches)
    source = "given"
    if gradients is None:
        source, gradients = estimator, {}
        if taken is not None or SCHEMES[scheme].uses_gradient:
            gradients = estimate_gradients(
                peft_model,
                taken or [],
                max((layer.r[name] for layer in layers.values()), default=1),
                num_batches=num_batches,
                estimator=estimator,
                loss=loss,
                weight=weight,
                adapter_name=name,
                seed=seed,
                progress=progress,
            )
    layers, starts, missing = _starts(layers, name, gradients, plan)
    with _all_or_nothing(peft_model, layers, name, plan) as originals:
        change, rounding = _write_and_check(peft_model, layers, name, starts, plan, taken if check else None)
        report = Report(
            scheme=scheme,
            offset=offset,
            gamma=plan.gamma,
            estimator=source,
            loss_terms=max((start.gradient.loss_terms for start in starts.values()), default=0.0),
            seconds=time.monotonic() - started,
            function_change=change,
            layers={layer: start.report(layers[layer], rounding[layer]) for layer, start in starts.items()},
            skipped={**skipped, **missing},
            coverage=total_coverage([start.gradient for start in starts.values()], [s.rank for s in starts.values()]),
            cosine=total_cosine([start.first_step for start in starts.values()]),
        )
        carried = carry(peft_model)
        carried._loraga_reports[name] = report.to_dict()
        if keep_original:
            carried._loraga_originals.update(originals)
        logger.info("adapter %s: %s", name, report.summary())
    return report


@dataclass(frozen=True)
class _Plan:
    """The caller's choices that more than one step needs, checked."""

    scheme: str
    stability: Stability
    offset: Offset
    gamma: float
    on_missing: Missing
    seed: int
    loss: LossFunction | None
    max_change: float
    allow_rounding: bool

    def __post_init__(self) -> None:
        require_choice("scheme", self.scheme, SCHEMES)
        require_choice("stability", self.stability, ("forward", "backward"))
        require_choice("offset", self.offset, DEFAULT_GAMMA)
        require_choice("on_missing", self.on_missing, ("error", "lora"))
        if not 0 < self.gamma < math.inf:
            raise ScalingError(f"gamma is {self.gamma}; it must be a positive number")


def _startable_layers(model: PeftModel, name: str, plan: _Plan) -> tuple[dict[str, LoraLayer], dict[str, str]]:
    """The adapter's layers that can be started, and why the others cannot."""
    layers = lora_layers(model, name)
    require_plain_lora(model, name)
    require_unmerged(layers)
    require_unchanged_base(model, name)
    require_untrained(layers, name)
    require_gradients(model)
    reasons = unsupported_layers(layers, name, carries_offset=plan.offset == "adapter")
    stop_or_warn(reasons, plan.on_missing, AdapterError)
    layers = {layer: module for layer, module in layers.items() if layer not in reasons}
    require_scaling(layers, name, plan.scheme, SCHEMES[plan.scheme])
    if plan.offset == "weights":
        require_foldable(model, layers, name, plan.allow_rounding)
    return layers, reasons


def _starts(
    layers: dict[str, LoraLayer], name: str, gradients: Mapping[str, LowRankGradient], plan: _Plan
) -> tuple[dict[str, LoraLayer], dict[str, LayerStart], dict[str, str]]:
    """The start of each layer that has a gradient, and why the others have none."""
    scheme, missing = SCHEMES[plan.scheme], {}
    if gradients:
        require_fitting(layers, gradients)
    if scheme.uses_gradient:
        missing = layers_without_gradient(layers, gradients)
        stop_or_warn(missing, plan.on_missing, GradientError)
        layers = {layer: module for layer, module in layers.items() if layer not in missing}
    starts = compute_starts(layers, name, gradients, scheme, plan.gamma, plan.stability, plan.seed)
    if scheme.uses_gradient:
        warn_of_few_directions({layer: (start.gradient.directions, start.rank) for layer, start in starts.items()})
    return layers, starts, missing


def _write_and_check(
    model: PeftModel,
    layers: Mapping[str, LoraLayer],
    name: str,
    starts: Mapping[str, LayerStart],
    plan: _Plan,
    batches: Sequence[Batch] | None,
) -> tuple[float | None, dict[str, float]]:
    """Writes the starts; gives the change of the outputs (None if not looked at) and what rounding lost by layer."""
    if not batches:
        return None, _write(layers, name, starts, plan)
    batch = batches[0]
    if plan.offset == "adapter" and plan.loss is None:  # equal bit for bit or not: one example tells
        batch = one_example(batch)
    with gradient_pass(model):
        with without_lora(model, name):
            before = _outputs(model, batch, plan)
        rounding = _write(layers, name, starts, plan)
        with only_adapter(model, name):
            after = _outputs(model, batch, plan)
    _require_kept(before, after, plan)
    return relative_change(before, after), rounding


def _outputs(model: PeftModel, batch: Batch, plan: _Plan) -> list[Tensor]:
    with same_random_states():  # a loss may draw random numbers, the same ones before and after
        return model_outputs(model, batch, plan.loss)


def _write(
    layers: Mapping[str, LoraLayer], name: str, starts: Mapping[str, LayerStart], plan: _Plan
) -> dict[str, float]:
    rounding = dict.fromkeys(starts, 0.0)
    with torch.no_grad():
        for layer, start in starts.items():
            module = layers[layer]
            factors = trained_factors(module, name)
            write_whole(factors.A, start.factors.A)
            write_whole(factors.B, start.factors.B)
            # as the adapter's dtype rounds them, so that the offset is exact
            written = Factors(A=whole(factors.A), B=whole(factors.B))
            if plan.offset == "none":
                continue
            if plan.offset == "weights":
                rounding[layer] = fold_offset(module, written, start.eta)
            attach_offset(module, name, written, folded=plan.offset == "weights")
    return rounding


def _require_kept(before: list[Tensor], after: list[Tensor], plan: _Plan) -> None:
    change = relative_change(before, after)
    if plan.offset == "adapter" and not are_equal(before, after):
        raise OffsetError(
            f"the offset does not reach the model's forward (its outputs moved by {change:.2g}): fused LoRA kernels "
            "or a wrapper go around PEFT's layers. Switch them off, or use offset='none'. The model is as it was"
        )
    if plan.offset == "weights" and not plan.allow_rounding and not change <= plan.max_change:
        raise OffsetError(
            f"folding the offset into the weights moved the model's outputs by {change:.2g}, more than max_change "
            f"{plan.max_change:g}; use offset='adapter' or a larger gamma. The model is as it was"
        )
    if plan.offset == "none" and not change <= plan.max_change:
        raise OffsetError(
            f"with offset='none' and gamma {plan.gamma:g} the outputs move by {change:.2g}, more than max_change "
            f"{plan.max_change:g}; {_smaller_start(change, plan)}use offset='adapter'. The model is as it was"
        )


def _smaller_start(change: float, plan: _Plan) -> str:
    """The gamma that would be enough, for a message; to first order the outputs move by 1 / gamma."""
    if not SCHEMES[plan.scheme].uses_gamma or not math.isfinite(change):
        return ""
    return f"gamma={2.0 ** math.ceil(math.log2(plan.gamma * change / plan.max_change)):g} would meet it, or "


@contextmanager
def _all_or_nothing(
    model: PeftModel, layers: Mapping[str, LoraLayer], name: str, plan: _Plan
) -> Iterator[dict[str, Tensor]]:
    """Undoes everything that was written if the block fails; yields the base weights that will change, copied."""
    factors = {layer: trained_factors(module, name) for layer, module in layers.items()}
    before = {layer: (now.A.clone(), now.B.clone()) for layer, now in factors.items()}
    weights: dict[str, Tensor] = {}
    if plan.offset == "weights":
        weights = {layer: base_layer(module).weight.detach().cpu().clone() for layer, module in layers.items()}
    try:
        yield weights
    except BaseException:
        with torch.no_grad():
            for layer, (A, B) in before.items():
                factors[layer].A.copy_(A)
                factors[layer].B.copy_(B)
                detach_offset(layers[layer], name)
            for layer, weight in weights.items():
                base_layer(layers[layer]).weight.copy_(weight)
        uncarry(model, name)
        raise
