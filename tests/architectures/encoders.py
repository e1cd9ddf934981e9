"""Encoders of text: masked language models, classifiers, a tagger and a span finder."""

from __future__ import annotations

from typing import Any

import torch

from .decoders import TEXT
from .kinds import CLASSES, VOCABULARY, Architecture, Batch, masked_batch, text_class_batch, tokens


def tagging_batch(generator: torch.Generator) -> Batch:
    ids = tokens(generator)
    labels = torch.randint(0, CLASSES, ids.shape, generator=generator)
    labels[0, 9:] = -100
    return {"input_ids": ids, "labels": labels}


def span_batch(generator: torch.Generator) -> Batch:
    """The batch of a question answering head, whose labels are two positions."""
    rows = int(torch.randint(2, 5, (), generator=generator))
    starts, ends = torch.randint(0, 14, (2, rows), generator=generator)
    return {"input_ids": tokens(generator, rows), "start_positions": starts, "end_positions": ends}


def encoder(model: str, batch: Any = masked_batch, **config: Any) -> Architecture:
    return Architecture(model, {**TEXT, **config}, batch)


DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "hidden_dim": 40,
    "n_layers": 1,
    "n_heads": 4,
    "max_position_embeddings": 64,
}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "num_hidden_layers": 2,
}

ARCHITECTURES = {
    "BERT": Architecture(
        "BertForMaskedLM", {**TEXT, "num_hidden_layers": 2}, masked_batch, ["query", "key", "value", "dense"]
    ),
    "BERT, classification": encoder("BertForSequenceClassification", text_class_batch, num_labels=CLASSES),
    "RoBERTa": encoder("RobertaForMaskedLM"),
    "RoBERTa, tagging": encoder("RobertaForTokenClassification", tagging_batch, num_labels=CLASSES),
    "DeBERTa-v2": encoder("DebertaV2ForMaskedLM", **DEBERTA),
    "DeBERTa-v2, classification": encoder(
        "DebertaV2ForSequenceClassification", text_class_batch, num_labels=CLASSES, **DEBERTA
    ),
    "ModernBERT": encoder("ModernBertForMaskedLM", num_hidden_layers=2, local_attention=8, mlp_dropout=0.1),
    "ELECTRA": encoder("ElectraForMaskedLM", embedding_size=16),
    "ALBERT": encoder("AlbertForMaskedLM", embedding_size=16, num_hidden_layers=3),
    "DistilBERT": Architecture("DistilBertForMaskedLM", DISTILBERT, masked_batch),
    "DistilBERT, question answering": Architecture(
        "DistilBertForQuestionAnswering",
        DISTILBERT,
        span_batch,
        settings={"weight": lambda batch: len(batch["input_ids"])},
        output="start_logits",
    ),
}
