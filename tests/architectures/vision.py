"""Image models: classifiers and a segmenter."""

from __future__ import annotations

from functools import partial

import torch

from .kinds import CLASSES, Architecture, Batch, image_batch, images

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": CLASSES,
}


def segmentation_batch(generator: torch.Generator) -> Batch:
    rows = int(torch.randint(1, 4, (), generator=generator))
    labels = torch.randint(0, CLASSES, (rows, 32, 32), generator=generator)
    labels[0, :9] = 255  # SegFormer's ignored label
    return {"pixel_values": images(generator, rows, 32), "labels": labels}


ARCHITECTURES = {
    "ViT": Architecture("ViTForImageClassification", VIT, image_batch),
    "BEiT": Architecture("BeitForImageClassification", VIT, image_batch),
    "DINOv2": Architecture("Dinov2ForImageClassification", VIT | {"drop_path_rate": 0.2}, image_batch),
    "Swin": Architecture(
        "SwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [2, 1],
            "num_heads": [2, 4],
            "window_size": 4,
            "num_labels": CLASSES,
        },
        partial(image_batch, side=32),
    ),
    "ConvNeXt": Architecture(
        "ConvNextForImageClassification",
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4, "num_labels": CLASSES}
        | {"layer_scale_init_value": 0.5},
        partial(image_batch, side=32),
    ),
    "SegFormer": Architecture(
        "SegformerForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 16,
            "num_labels": CLASSES,
        },
        segmentation_batch,
    ),
}
