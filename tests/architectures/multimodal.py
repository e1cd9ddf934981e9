"""Models of images and text."""

from __future__ import annotations

from dataclasses import replace

import torch

from .decoders import GROUPED, TEXT
from .kinds import VOCABULARY, Architecture, Batch, causal_batch, images, tokens

IMAGE_TOKEN = VOCABULARY - 1
TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 16,
}


def pairs_batch(generator: torch.Generator) -> Batch:
    """Texts and images that belong together; the loss is asked for by a keyword."""
    rows = int(torch.randint(3, 6, (), generator=generator))
    ids = tokens(generator, rows, 9)
    ids[:, -1] = 2
    return {"input_ids": ids, "pixel_values": images(generator, rows, 16), "return_loss": True}


def picture_batch(generator: torch.Generator) -> Batch:
    """A text about one picture of four patches."""
    batch = causal_batch(generator)
    ids = batch["input_ids"].clamp(max=IMAGE_TOKEN - 1)
    ids[:, 1:5] = IMAGE_TOKEN
    labels = batch["labels"].where(batch["input_ids"] != IMAGE_TOKEN, -100)
    labels[:, :5] = -100
    return {**batch, "input_ids": ids, "labels": labels, "pixel_values": images(generator, 3, 16)}


def patches_batch(generator: torch.Generator) -> Batch:
    """The same as Qwen2-VL takes it: patches of every picture in one matrix, and its grid of patches."""
    batch = picture_batch(generator)
    del batch["pixel_values"]
    types = (batch["input_ids"] == IMAGE_TOKEN).int()
    return {
        **batch,
        "mm_token_type_ids": types,
        "pixel_values": torch.randn(3 * 16, 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 3),
    }


def caption_batch(generator: torch.Generator) -> Batch:
    return {**causal_batch(generator), "pixel_values": images(generator, 3, 16)}


SIGLIP = Architecture(
    "SiglipModel",
    {"text_config": TEXT | {"projection_size": 32}, "vision_config": TOWER},
    pairs_batch,
    settings={"weight": lambda batch: len(batch["input_ids"])},
    output="logits_per_image",
)

ARCHITECTURES = {
    "CLIP": Architecture(
        "CLIPModel",
        {"text_config": TEXT | {"projection_dim": 16}, "vision_config": TOWER, "projection_dim": 16},
        pairs_batch,
        settings={"weight": lambda batch: len(batch["input_ids"])},
        output="logits_per_image",
    ),
    "SigLIP": replace(SIGLIP, lora={"exclude_modules": ["head.attention.out_proj"]}),
    "SigLIP, all-linear": replace(SIGLIP, refusal="layer vision_model.head.attention.out_proj: it got no gradient"),
    "LLaVA": Architecture(
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **GROUPED},
            "vision_config": {"model_type": "clip_vision_model", **TOWER, "num_hidden_layers": 2},
            "image_token_index": IMAGE_TOKEN,
            "image_token_id": IMAGE_TOKEN,
            "vision_feature_layer": -1,
        },
        picture_batch,
    ),
    "Qwen2-VL": Architecture(
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {**GROUPED, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
            "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 1}
            | {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2},
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": IMAGE_TOKEN - 1,
            "vision_start_token_id": 3,
            "vision_end_token_id": 4,
        },
        patches_batch,
    ),
    "BLIP": Architecture(
        "BlipForConditionalGeneration",
        {
            "text_config": {**TEXT, "encoder_hidden_size": 32, "sep_token_id": 2},
            "vision_config": TOWER,
            "projection_dim": 16,
        },
        caption_batch,
    ),
}
