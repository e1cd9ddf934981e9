"""State-space models, and hybrids of them with attention.

PEFT refuses their out_proj, whose weight fused kernels read without calling the layer.
"""

from __future__ import annotations

from dataclasses import replace

from .decoders import GROUPED, SPECIAL
from .kinds import VOCABULARY, Architecture, causal_batch

STATE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, **SPECIAL}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

JAMBA = Architecture(
    "JambaForCausalLM",
    {
        **GROUPED,
        "num_hidden_layers": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    causal_batch,
)

ARCHITECTURES = {
    "Mamba": Architecture(
        "MambaForCausalLM", {**STATE, "state_size": 8, "time_step_rank": 4}, causal_batch, ["in_proj", "x_proj"]
    ),
    "Mamba 2": Architecture(
        "Mamba2ForCausalLM",
        {**STATE, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
        causal_batch,
        ["in_proj"],
    ),
    "Jamba": replace(JAMBA, lora={"exclude_modules": ["dt_proj"]}),
    "Jamba, all-linear": replace(JAMBA, refusal="layer model.layers.0.mamba.dt_proj: it got no gradient"),
    "Falcon-H1": Architecture(
        "FalconH1ForCausalLM",
        {**GROUPED, **MAMBA2, "head_dim": 8, "mamba_d_ssm": 32},
        causal_batch,
        [*ATTENTION_AND_MLP, "in_proj"],
    ),
}
