"""Speech models: two with a CTC head and one with a decoder of text."""

from __future__ import annotations

import torch

from .decoders import TEXT
from .kinds import CLASSES, Architecture, Batch, classes, tokens
from .sequence_to_sequence import ENCODER_AND_DECODER

WAV2VEC2 = {
    **TEXT,
    "conv_dim": [16, 16],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "apply_spec_augment": True,
    "mask_time_prob": 0.5,
    "mask_time_length": 2,
}


def speech_batch(generator: torch.Generator) -> Batch:
    rows = int(torch.randint(2, 4, (), generator=generator))
    labels = tokens(generator, rows, 6)
    labels[0, 4:] = -100
    return {"input_values": torch.randn(rows, 800, generator=generator), "labels": labels}


def speech_class_batch(generator: torch.Generator) -> Batch:
    rows = int(torch.randint(2, 4, (), generator=generator))
    return {"input_values": torch.randn(rows, 800, generator=generator), "labels": classes(generator, rows)}


def spectrogram_batch(generator: torch.Generator) -> Batch:
    rows = int(torch.randint(2, 4, (), generator=generator))
    labels = tokens(generator, rows, 6)
    labels[0, 4:] = -100
    return {"input_features": torch.randn(rows, 8, 40, generator=generator), "labels": labels}


ARCHITECTURES = {
    "Wav2Vec2": Architecture("Wav2Vec2ForCTC", WAV2VEC2, speech_batch),
    "HuBERT": Architecture("HubertForCTC", {**WAV2VEC2, "ctc_loss_reduction": "mean"}, speech_batch),
    "HuBERT, classification": Architecture(
        "HubertForSequenceClassification",
        {**WAV2VEC2, "num_labels": CLASSES, "classifier_proj_size": 16},
        speech_class_batch,
    ),
    "Whisper": Architecture(
        "WhisperForConditionalGeneration",
        {
            **ENCODER_AND_DECODER,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 16,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "decoder_start_token_id": 1,
        },
        spectrogram_batch,
    ),
}
