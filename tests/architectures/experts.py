"""Mixtures of experts, whose experts are one parameter of three dimensions.

PEFT adapts such a parameter by target_parameters, which has no linear layer to take a gradient from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .decoders import GROUPED
from .kinds import Architecture, causal_batch

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def mixture(name: str, *more_targets: str, **config: Any) -> Architecture:
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return Architecture(
        f"{name}ForCausalLM", {**GROUPED, **experts, **config}, causal_batch, [*ATTENTION, *more_targets]
    )


def with_experts(architecture: Architecture, layers: str = "layer model.layers.0.mlp.experts") -> Architecture:
    """The same with the experts under the adapter too."""
    return replace(
        architecture,
        lora={"target_parameters": EXPERTS},
        refusal=f"{layers}: its parameter down_proj is adapted by PEFT's target_parameters",
    )


MIXTRAL = mixture("Mixtral")
QWEN3_MOE = mixture("Qwen3Moe", head_dim=8)
GPT_OSS = mixture("GptOss", head_dim=8, sliding_window=4, num_hidden_layers=2)

ARCHITECTURES = {
    "Mixtral": MIXTRAL,
    "Qwen2-MoE": mixture("Qwen2Moe", "shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj"),
    "Qwen3-MoE": QWEN3_MOE,
    "OLMoE": mixture("Olmoe"),
    "GPT-OSS": GPT_OSS,
    # PEFT adds the experts and the router by itself
    "Mixtral, all-linear": replace(
        MIXTRAL,
        targets="all-linear",
        refusal="layer model.layers.0.mlp.gate: its parameter weight is adapted by PEFT's target_parameters",
    ),
    "Mixtral, experts": with_experts(MIXTRAL),
    "Qwen3-MoE, experts": with_experts(QWEN3_MOE),
    "GPT-OSS, experts": with_experts(GPT_OSS, "layers model.layers.0.mlp.experts, model.layers.1.mlp.experts"),
}
