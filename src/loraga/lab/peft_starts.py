"""PEFT's adapters with their own starts, each made as its paper's recipe in PEFT makes it.

A function takes a fresh base model, changes it in place and gives back a PeftModel; METHODS names it. Its caller seeds
what is random and puts the global random state back.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from peft import AdaLoraConfig, EvaConfig, LoraConfig, LoraGAConfig, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

from loraga.adapter import carry
from loraga.layers import base_layer, lora_layers
from loraga.offset import attach_offset, trained_factors
from loraga.weights import FULL_PRECISION, tied_layers

from .errors import SettingsError
from .eva_inputs import EvaInputs
from .examples import on_device
from .methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peft import PeftModel

    from .recipe import Recipe

    Batch = dict[str, Any]
    Start = Callable[[Any, Recipe, Sequence[Batch]], PeftModel]

ADAPTER = "default"


def lora(model: Any, recipe: Recipe, batches: Sequence[Batch]) -> PeftModel:
    """LoRA as PEFT starts it: A random, B zero."""
    return get_peft_model(model, _config(model, recipe))


def dora(model: Any, recipe: Recipe, batches: Sequence[Batch]) -> PeftModel:
    """DoRA (arXiv 2402.09353): the same with the weight's column norms trained too."""
    return get_peft_model(model, _config(model, recipe, use_dora=True))


def pissa(model: Any, recipe: Recipe, batches: Sequence[Batch]) -> PeftModel:
    """PiSSA (arXiv 2404.02948): eta B A is the best approximation of W of its rank, and W keeps the rest."""
    return _with_subtracted_start(get_peft_model(model, _config(model, recipe, init_lora_weights="pissa")))


def peft_lora_ga(model: Any, recipe: Recipe, batches: Sequence[Batch]) -> PeftModel:
    """PEFT's own LoRA-GA with its defaults, from the mean of the batches' gradients."""
    config = _config(model, recipe, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    _maybe_include_all_linear_layers(config, model)  # which preprocess_loraga takes for a pattern

    def train_step() -> None:
        for batch in batches:
            model(**on_device(model, batch)).loss.backward()

    with warnings.catch_warnings():  # it hooks layers whose input needs no gradient
        warnings.filterwarnings("ignore", "Full backward hook is firing when gradients are computed")
        preprocess_loraga(model, config, train_step)
    return _with_subtracted_start(get_peft_model(model, config))


def eva(model: Any, recipe: Recipe, batches: Sequence[Batch]) -> PeftModel:
    """EVA (arXiv 2410.07170): A from the inputs of the batches' tokens, ranks by their explained variance."""
    config = _config(model, recipe, init_lora_weights="eva", eva_config=EvaConfig())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lora with eva initialization used with low_cpu_mem_usage=False")
        peft_model = get_peft_model(model, config)
    inputs = EvaInputs(batches, recipe.rank, is_encoder_decoder=model.config.is_encoder_decoder)
    initialize_lora_eva_weights(
        peft_model,
        inputs.batches,
        forward_fn=inputs.forward,
        prepare_model_inputs_fn=inputs.of_model,
        prepare_layer_inputs_fn=inputs.of_layer,
        show_progress_bar=False,
    )
    return peft_model


def adalora(model: Any, recipe: Recipe, batches: Sequence[Batch]) -> PeftModel:
    """AdaLoRA (arXiv 2303.10512) at its first rank; the run that trains it sets the schedule."""
    first = recipe.init_r or math.ceil(1.5 * recipe.rank)
    config = AdaLoraConfig(init_r=first, target_r=recipe.rank, total_step=1, **_shared(model, recipe))
    return get_peft_model(model, config)


STARTS: dict[str, Start] = {each.__name__: each for each in (lora, dora, pissa, peft_lora_ga, eva, adalora)}


def _config(model: Any, recipe: Recipe, **settings: Any) -> LoraConfig:
    use_rslora = METHODS[recipe.method].use_rslora
    return LoraConfig(r=recipe.rank, use_rslora=use_rslora, **_shared(model, recipe), **settings)


def _shared(model: Any, recipe: Recipe) -> dict[str, Any]:
    return {
        "lora_alpha": recipe.alpha,
        "lora_dropout": recipe.dropout,
        "target_modules": recipe.target_modules,
        "task_type": "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    }


def _with_subtracted_start(model: PeftModel) -> PeftModel:
    """A model whose start PEFT has subtracted from the weights, as one with an offset that is folded in.

    It trains as PEFT's does, and all that it saves, checkpoints too, is a plain LoRA of the original base.
    """
    layers = lora_layers(model, ADAPTER)
    tied = tied_layers(model, layers)
    for name, layer in layers.items():
        weight, start = base_layer(layer).weight, trained_factors(layer, ADAPTER)
        if name in tied:
            raise SettingsError(
                f"layer {name}: its weight is tied to another layer's, which the start would change too; leave it out "
                "of target_modules"
            )
        if weight.dtype not in FULL_PRECISION:
            raise SettingsError(
                f"layer {name}: its weight is {weight.dtype}, which rounds away what the start subtracts from it; "
                "write dtype: float32"
            )
        rank = layer.r[ADAPTER]
        if start.A.shape[0] != rank or start.B.shape[1] != rank:
            raise SettingsError(f"layer {name} of {tuple(weight.shape)} has too few singular values; lower rank {rank}")
        if bool(start.B.any()):  # else PEFT found no gradient, and the layer is plain LoRA
            attach_offset(layer, ADAPTER, start, folded=True)
    config: Any = model.peft_config[ADAPTER]
    config.init_lora_weights, config.lora_ga_config = True, None  # nothing is to be started or subtracted again
    return carry(model)
