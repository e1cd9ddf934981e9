"""The shapes of a model that is not loaded: how many parameters, of which kind, and the layers an adapter goes on.

    the model where it is at hand --its configuration--> a model on torch's meta device, which has shapes and no weights
    else the table of published models -----------------^

Nothing is fetched: a model on the hub is at hand if it was fetched before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import smollm2
from .base_model import BaseModel
from .errors import SettingsError

if TYPE_CHECKING:
    from .recipe import Recipe

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")  # files, one is enough
Targets = str | tuple[str, ...]  # of a recipe's target_modules

# Published models, so that recipes for them can be checked where they are not: the arguments of transformers'
# configuration that decide the shapes.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-2-7b-hf": (
        "llama",
        {
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 11_008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "tie_word_embeddings": False,
        },
    ),
    "meta-llama/Llama-3.2-3B": (
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
    "google-t5/t5-base": (
        "t5",
        {
            "vocab_size": 32_128,
            "d_model": 768,
            "d_kv": 64,
            "d_ff": 3072,
            "num_layers": 12,
            "num_decoder_layers": 12,
            "num_heads": 12,
        },
    ),
}


@dataclass(frozen=True)
class ModelShape:
    """What a model is made of.

    Attributes:
        source: where the shapes come from, in words.
        parameters: all of them; shared ones once.
        encoder: those that every token of a prompt is multiplied by in an encoder; 0 without one.
        body: those that every token is multiplied by, of a decoder where there is an encoder.
        head: those that turn a hidden state into logits.
        vocabulary: how many logits.
        linear: (d_out, d_in) of every layer that an adapter of the recipe goes on.
        is_encoder_decoder: whether it reads the prompt with an encoder.
        saved: numbers that the linear layers keep of a token for the backward pass: their inputs and outputs.
        cache: numbers of keys and values that are kept of a token while an answer is generated, by the layers' names.
    """

    source: str
    parameters: int
    encoder: int
    body: int
    head: int
    vocabulary: int
    linear: tuple[tuple[int, int], ...]
    is_encoder_decoder: bool
    saved: int
    cache: int

    def adapter(self, rank: int) -> int:
        """Parameters of A (r, d_in) and B (d_out, r) over its layers."""
        return sum(rank * (rows + columns) for rows, columns in self.linear)

    @property
    def outputs(self) -> int:
        """Numbers that its layers with an adapter put out: DoRA's magnitudes."""
        return sum(rows for rows, _ in self.linear)


def at_hand(recipe: Recipe) -> BaseModel | None:
    """The recipe's model as files of this machine.

    Args:
        recipe: names it.

    Returns:
        Something to read its configuration and tokenizer from; None if it would have to be fetched.
    """
    name, path = recipe.model, Path(recipe.model).expanduser()
    if path.exists():
        return BaseModel.of(recipe)
    if name == smollm2.NAME:
        return BaseModel(str(smollm2.model_folder() if smollm2.is_converted() else smollm2.gguf_file()))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    if not isinstance(found, str):
        return None
    return BaseModel(str(Path(found).parent), recipe.dtype, recipe.trust_remote_code)


def tokenizer_at_hand(recipe: Recipe) -> BaseModel | None:
    """The same to read the tokenizer from; of a model on the hub the configuration alone may have been fetched."""
    base = at_hand(recipe)
    fetched = base is not None and base.name != recipe.model and recipe.model != smollm2.NAME
    if base is None or (fetched and not any((Path(base.name) / name).exists() for name in TOKENIZERS)):
        return None
    return base


def shape_of(recipe: Recipe) -> ModelShape | None:
    """The shapes of a recipe's model.

    Args:
        recipe: names the model, and the layers of an adapter.

    Returns:
        The shapes; None where they are not known here.

    Raises:
        DataError: if the model is at hand and its configuration cannot be read.
        SettingsError: if no layer is one that target_modules names.
    """
    targets = recipe.target_modules if isinstance(recipe.target_modules, str) else tuple(recipe.target_modules)
    base = at_hand(recipe)
    if base is not None:
        return _measured(base.load_config(), targets, f"the configuration of {recipe.model}", recipe.trust_remote_code)
    return _of_published(recipe.model, targets) if recipe.model in PUBLISHED else None


@cache
def _of_published(name: str, targets: Targets) -> ModelShape:
    from transformers import AutoConfig

    kind, arguments = PUBLISHED[name]
    return _measured(AutoConfig.for_model(kind, **arguments), targets, f"the published shapes of {name}", False)


def _measured(config: Any, targets: Targets, source: str, trust_remote_code: bool) -> ModelShape:
    model = _without_weights(config, trust_remote_code)
    heads = [each for each in (model.get_output_embeddings(),) if each is not None]
    head = sum(parameter.numel() for each in heads for parameter in each.parameters())
    tables = {id(table): table.numel() for table in model.get_input_embeddings().parameters()}
    of_heads = {id(parameter) for each in heads for parameter in each.parameters()}
    apart = {**tables, **dict.fromkeys(of_heads, 0)}  # neither a table nor a head multiplies every token

    def multiplied(module: Any) -> int:
        return sum(each.numel() for each in module.parameters() if id(each) not in apart)

    is_pair = bool(getattr(config, "is_encoder_decoder", False))
    encoder = multiplied(model.get_encoder()) if is_pair else 0
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = _linear_layers(model)
    return ModelShape(
        source=source,
        parameters=total,
        encoder=encoder,
        body=multiplied(model) - encoder,
        head=head,
        vocabulary=int(model.get_output_embeddings().weight.shape[0]) if heads else 0,
        linear=_adapted(model, targets),
        is_encoder_decoder=is_pair,
        saved=sum(each.out_features + each.in_features for each in layers.values()),
        cache=sum(each.out_features for name, each in layers.items() if _is_cached(name)),
    )


def _without_weights(config: Any, trust_remote_code: bool) -> Any:
    """The model on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    is_pair = bool(getattr(config, "is_encoder_decoder", False))
    with torch.device("meta"):
        model = (AutoModelForSeq2SeqLM if is_pair else AutoModelForCausalLM).from_config(
            config, trust_remote_code=trust_remote_code
        )
    model.tie_weights()
    return model


def _linear_layers(model: Any) -> dict[str, Any]:
    from torch import nn

    head = model.get_output_embeddings()
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head}


def _is_cached(name: str) -> bool:
    return name.rpartition(".")[2] in ("k_proj", "v_proj", "k", "v") and not name.startswith("encoder.")


def _adapted(model: Any, targets: Targets) -> tuple[tuple[int, int], ...]:
    """(d_out, d_in) of the layers that PEFT puts an adapter on."""
    import torch
    from peft import LoraConfig, get_peft_model

    from loraga.layers import base_layer, lora_layers

    try:
        with torch.device("meta"):
            names = targets if isinstance(targets, str) else list(targets)
            adapted = get_peft_model(model, LoraConfig(r=1, target_modules=names))
    except ValueError as cause:
        raise SettingsError(
            f"no adapter can be put on the model; look at target_modules ({' '.join(str(cause).split())})"
        ) from cause
    found = []
    for layer in lora_layers(adapted, "default").values():
        shape = tuple(base_layer(layer).weight.shape)
        found.append((shape[0], math.prod(shape[1:])))
    return tuple(found)
