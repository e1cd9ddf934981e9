"""Adapters as other programs train and save them: PEFT's own lora_ga, and the authors' code."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models import ARCHITECTURES, autograd_gradients, build, logits, relative_difference

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_WARNS = (
    "ignore:Full backward hook is firing:UserWarning",  # on a model whose inputs need no gradient
    "ignore:Setting `save_embedding_layers` to `True`:UserWarning",
)


def peft_lora_ga(data: list[dict[str, Tensor]], name: str = "Llama", **settings: Any) -> Any:
    """PEFT's own LoRA-GA; the loss is scaled since PEFT's start is proportional to the gradient."""
    base = build(name)
    config = LoraConfig(
        **{
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "fan_in_fan_out": ARCHITECTURES[name].fan_in_fan_out,
            "init_lora_weights": "lora_ga",
            "lora_ga_config": LoraGAConfig(),
            **settings,
        }
    )

    def train_step() -> None:
        for batch in data:
            (30 * base(**batch).loss).backward()

    with torch.random.fork_rng():
        torch.manual_seed(3)
        preprocess_loraga(base, config, train_step)
        return get_peft_model(base, config).eval()


def distance(directory: Any, expected: Tensor, batch: dict[str, Tensor], name: str = "Llama") -> float:
    """How far plain PEFT's logits on a fresh original base are from others."""
    loaded = PeftModel.from_pretrained(build(name), str(directory)).eval()
    return relative_difference(logits(loaded, batch, name), expected)


def edit(directory: Any, **changes: Any) -> None:
    """Changes adapter_config.json."""
    path = directory / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class AuthorsLinear(nn.Module):
    """A linear layer on W - eta B A with the adapter on it, computed without PEFT."""

    def __init__(self, linear: nn.Linear, gradient: Tensor, rank: int, eta: float, gamma: float) -> None:
        """The start of their `lora_ga_init` with direction ArB2r and scale stable.

        Outsider565/LoRA-GA, peft/src/peft/tuners/lora/layer.py.
        """
        super().__init__()
        U, _, V = torch.svd_lowrank(gradient.float(), q=min(4 * rank, *gradient.shape), niter=4)
        scale = gradient.shape[0] ** 0.25 / gamma**0.5
        self.A = nn.Parameter((V.T[:rank] * scale).contiguous())
        self.B = nn.Parameter((U[:, rank : 2 * rank] * scale).contiguous())
        self.A0, self.B0, self.eta = self.A.detach().clone(), self.B.detach().clone(), eta
        self.W, self.bias = linear.weight.detach() - eta * (self.B0 @ self.A0), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W, self.bias) + self.eta * F.linear(F.linear(x, self.A), self.B)


class AuthorsRun:
    """A tiny Llama trained as the authors' code trains it, and the directories that it writes."""

    def __init__(self, data: list[dict[str, Tensor]], **settings: Any) -> None:
        # what their LoraGAConfig (a LoraConfig of PEFT 0.11.2 with seven more fields, all of them flat) saves
        self.config: dict[str, Any] = {
            "alpha_pattern": {},
            "auto_mapping": None,
            "base_model_name_or_path": None,
            "bias": "none",
            "bsz": 2,
            "direction": "ArB2r",
            "dtype": "fp32",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": "lora_ga",
            "iters": 64,
            "layer_replication": None,
            "layers_pattern": None,
            "layers_to_transform": None,
            "loftq_config": {},
            "lora_alpha": 4,
            "lora_dropout": 0.0,
            "max_length": 1024,
            "megatron_config": None,
            "megatron_core": "megatron.core",
            "modules_to_save": None,
            "peft_type": "LORAGA",
            "r": 2,
            "rank_pattern": {},
            "revision": None,
            "scale": "stable",
            "stable_gamma": 16,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
            **settings,
        }
        gradients = autograd_gradients(build("Llama"), data, [1.0] * len(data))
        self.model = build("Llama").requires_grad_(False)
        self.layers: dict[str, AuthorsLinear] = {}
        with torch.random.fork_rng():
            torch.manual_seed(5)
            for name, module in list(self.model.named_modules()):
                if name.rpartition(".")[2] in self.config["target_modules"]:
                    layer = AuthorsLinear(module, gradients[name], *self._rank_and_scaling(name), gamma=16)
                    self.layers[name] = layer
                    self.model.set_submodule(name, layer)

    def _rank_and_scaling(self, name: str) -> tuple[int, float]:
        """By their `_create_and_replace` (tuners/lora/model.py): one key for both patterns, the first that matches."""
        keys = [*self.config["rank_pattern"], *self.config["alpha_pattern"]]
        key = next(filter(lambda key: re.match(rf".*\.{key}$", name), keys), name)
        rank = self.config["rank_pattern"].get(key, self.config["r"])
        alpha = self.config["alpha_pattern"].get(key, self.config["lora_alpha"])
        return rank, alpha / math.sqrt(rank) if self.config["use_rslora"] else alpha / rank

    def save(self, directory: Any) -> Any:
        """What `save_pretrained` writes, also as `save_loraga_model_init` calls it."""
        factors = {name: (layer.A.detach(), layer.B.detach()) for name, layer in self.layers.items()}
        return self._write(directory, factors, self.config)

    def save_final(self, directory: Any) -> Any:
        """What `save_loraga_model_final` writes.

        utils/lora_ga_utils/lora_ga_utils.py, and `save_pretrained` in their peft_model.py: r and lora_alpha are doubled
        whatever the scaling, the patterns are not.
        """
        factors = {
            name: (torch.cat([layer.A.detach(), layer.A0]), torch.cat([layer.B.detach(), -layer.B0], dim=1))
            for name, layer in self.layers.items()
        }
        doubled = {key: 2 * self.config[key] for key in ("r", "lora_alpha")}
        return self._write(directory, factors, {**self.config, **doubled, "init_lora_weights": True})

    def _write(self, directory: Any, factors: dict[str, tuple[Tensor, Tensor]], config: dict[str, Any]) -> Any:
        directory.mkdir(parents=True)
        state = {}
        for name, (A, B) in factors.items():
            state[f"base_model.model.{name}.lora_A.weight"] = A.contiguous()
            state[f"base_model.model.{name}.lora_B.weight"] = B.contiguous()
        save_file(state, directory / WEIGHTS, metadata={"format": "pt"})
        (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
        return directory
