"""Quantised bases: how a tiny model of each kind is made, or why that cannot be done here.

`KINDS` is what runs where its package is installed; a test takes its rows from `RUNNING`. `REFUSED` is what is refused
on this machine before loraga is given a model, with the text of that error. HQQ runs where it is installed (it has no
wheel, and its source tries to compile CUDA code).
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from tests import models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Blocks of 64 and the 32 rows that bitsandbytes repacks together fit; a layer's factors are smaller than its matrix.
CONFIG = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Quantisation:
    """One kind of quantised base.

    Attributes:
        make: callable(directory of the float model) -> the quantised model, the same each time.
        dequantise: callable(layer) -> its weight in float32, (d_out, d_in), by the library's own function.
        package: what must be installed.
        merges: PEFT merges an adapter with its offset into it (and rounds the sum).
        keeps_copies: the library itself keeps a layer's dequantised weight from forward to backward.
    """

    make: Callable[[Path], nn.Module]
    dequantise: Callable[[nn.Module], Tensor]
    package: str = "bitsandbytes"
    merges: bool = True
    keeps_copies: bool = False

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


@dataclass(frozen=True)
class Refusal:
    """A quantised base that transformers does not make here.

    Attributes:
        make: callable(directory of the float model) -> what would be the model.
        error: the class of the error.
        text: of the error, a regular expression.
    """

    make: Callable[[Path], nn.Module]
    error: type[Exception]
    text: str


def float_model(seed: int = 0) -> LlamaForCausalLM:
    """The unquantised base, in float32 and eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    return model


def with_lora(model: nn.Module, **settings: Any) -> Any:
    """A LoRA adapter on all layers that quantisation replaces, by name: PEFT's "all-linear" does not see HQQ's."""
    return models.with_lora(model, **{"target_modules": TARGETS, **settings})


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that quantisation replaces, by the base model's names."""
    modules = {
        name.replace("base_model.model.", "").removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if ".lora_" not in name and hasattr(module, "in_features") and not hasattr(module, "base_layer")
    }
    return {name: module for name, module in modules.items() if "lm_head" not in name}


def dequantised(model: nn.Module, kind: Quantisation) -> LlamaForCausalLM:
    """A float model with the quantised model's weights, which plain autograd can differentiate."""
    plain = float_model()
    layers = linear_layers(model)
    with torch.no_grad():
        for name, layer in linear_layers(plain).items():
            layer.weight.copy_(kind.dequantise(layers[name]))
    return plain


def repack(model: nn.Module) -> None:
    """What bitsandbytes' forward does in eval mode on processors with AVX512-BF16, done by its own function."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.weight.data, module.weight.quant_state = _convert_weight_packed_for_cpu(
                module.weight.data, module.weight.quant_state
            )


def base_bytes(model: nn.Module) -> dict[str, bytes]:
    """Every byte of the base: parameters, buffers, and all that belongs to a weight's quantisation.

    `state_dict()` is not asked, because bitsandbytes unpacks weights there.
    """
    found: dict[str, bytes] = {}
    for name, module in model.named_modules():
        if ".lora_" in name:
            continue
        tensors = {**module._parameters, **module._buffers, "": _state(module)}
        plain = name.replace("base_model.model.", "").replace(".base_layer", "")
        for key, value in tensors.items():
            for part, tensor in _parts(value):
                if not key.startswith("lora_"):
                    content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                    found[f"{plain}.{key}{part}"] = content
    return found


def _state(module: nn.Module) -> Any:
    """What a quantised layer keeps beside its tensors, as a tree of dictionaries."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is not None:
        return {key: value for key, value in vars(state).items() if key != "code"} | {
            "state2": vars(state.state2) if state.nested else None
        }
    if type(module).__name__ == "Linear8bitLt" and hasattr(module, "state"):  # PEFT's layer has the same name
        # the first forward moves them from the weight to the state
        scales = module.weight.SCB if module.state.SCB is None else module.state.SCB
        return {"SCB": scales}
    return getattr(module, "meta", None)  # HQQ


def _parts(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(item, f"{path}.{key}")
    elif isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):  # torchao's
        for key in (*value.__tensor_flatten__()[0], *getattr(value, "optional_tensor_data_names", ())):
            yield from _parts(getattr(value, key), f"{path}.{key}")
    elif isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (bool, int, float, str, tuple, torch.dtype, torch.Size)):
        yield path, torch.frombuffer(bytearray(repr(value).encode()), dtype=torch.uint8)


def _quantised(directory: Path, config: Any) -> nn.Module:
    """A model of the class that was saved."""
    [name] = AutoConfig.from_pretrained(directory).architectures
    model_class: Any = getattr(transformers, name)
    return model_class.from_pretrained(directory, quantization_config=config, device_map={"": "cpu"})


def _bitsandbytes(**settings: Any) -> Callable[[Path], nn.Module]:
    return lambda directory: _quantised(directory, BitsAndBytesConfig(**settings))


def four_bit(kind: str, *, double: bool = False, compute_dtype: torch.dtype = torch.float32) -> Quantisation:
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": double}
    return Quantisation(_bitsandbytes(**settings, bnb_4bit_compute_dtype=compute_dtype), _dequantise_4bit)


def _dequantise_4bit(layer: nn.Module) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def _dequantise_8bit(layer: nn.Module) -> Tensor:
    weight = layer.weight.data if layer.state.CB is None else layer.state.CB
    scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
    return weight.float() * scales[:, None] / 127


@cache
def _import_torchao() -> None:
    with warnings.catch_warnings():  # torchao 0.18.0 tells torch what torch 2.13 knows by itself
        warnings.simplefilter("ignore")
        importlib.import_module("torchao")


def _torchao_int8(directory: Path) -> nn.Module:
    _import_torchao()
    from torchao.quantization import Int8WeightOnlyConfig

    return _quantised(directory, transformers.TorchAoConfig(quant_type=Int8WeightOnlyConfig()))


def _hqq(bits: int) -> Callable[[Path], nn.Module]:
    """HQQ's own layers, put in by hand: transformers refuses HQQ on a CPU (`HqqHfQuantizer`)."""

    def make(directory: Path) -> nn.Module:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        model = AutoModelForCausalLM.from_pretrained(directory)
        for name, layer in linear_layers(model).items():
            parent, _, child = name.rpartition(".")
            config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=1)
            quantised = HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu")
            setattr(model.get_submodule(parent), child, quantised)
        return model

    return make


def _dequantise(layer: nn.Module) -> Tensor:
    return layer.weight.dequantize().float()


def _dequantise_hqq(layer: nn.Module) -> Tensor:
    return layer.dequantize().float()


KINDS = {
    "NF4": four_bit("nf4"),
    "NF4, doubly quantised": four_bit("nf4", double=True),
    "FP4": four_bit("fp4"),
    "FP4, doubly quantised": four_bit("fp4", double=True),
    "8-bit": Quantisation(_bitsandbytes(load_in_8bit=True), _dequantise_8bit),
    "torchao int8": Quantisation(_torchao_int8, _dequantise, "torchao", merges=False, keeps_copies=True),
    "HQQ 4-bit": Quantisation(_hqq(4), _dequantise_hqq, "hqq"),
    "HQQ 8-bit": Quantisation(_hqq(8), _dequantise_hqq, "hqq"),
}
RUNNING = [name for name, kind in KINDS.items() if kind.is_installed]


def _by_transformers(config: Callable[[], Any]) -> Callable[[Path], nn.Module]:
    def make(directory: Path) -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(
            directory, quantization_config=config(), dtype=torch.bfloat16, device_map={"": "cpu"}
        )

    return make


def _as_saved(method: str) -> Callable[[Path], nn.Module]:
    """A checkpoint whose config says that its weights are quantised, as they come from the hub."""

    def make(directory: Path) -> nn.Module:
        copy = directory / method
        float_model().save_pretrained(copy)
        config = json.loads((copy / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 64, "zero_point": True}
        (copy / "config.json").write_text(json.dumps(config))
        return AutoModelForCausalLM.from_pretrained(copy)

    return make


def _torchao_int4() -> Any:
    from torchao.quantization import Int4WeightOnlyConfig

    return transformers.TorchAoConfig(quant_type=Int4WeightOnlyConfig(group_size=32))


def _refused() -> dict[str, Refusal]:
    """Depends on what is installed: a package that is missing is named, and one that is there says why not on a CPU."""

    def has(package: str) -> bool:
        return importlib.util.find_spec(package) is not None

    hqq = _by_transformers(lambda: transformers.HqqConfig(nbits=4))
    missing_torchao = _by_transformers(lambda: transformers.TorchAoConfig("int8_weight_only"))
    found = {
        "HQQ by transformers": Refusal(hqq, ValueError, "remove the CPU")
        if has("hqq")
        else Refusal(hqq, ImportError, "A valid HQQ version .* is not available"),
        # the cause is in the log: torchao's int4 tensors are made on a GPU, or by mslk
        "torchao int4": Refusal(_by_transformers(_torchao_int4), RuntimeError, "conversion of the weights")
        if has("torchao")
        else Refusal(missing_torchao, ValueError, "requires torchao to be installed"),
    }
    if not has("optimum"):
        found["GPTQ"] = Refusal(_as_saved("gptq"), ImportError, "requires optimum")
    if not has("gptqmodel"):
        found["AWQ"] = Refusal(_as_saved("awq"), ImportError, "requires gptqmodel")
    return found


REFUSED = _refused()
