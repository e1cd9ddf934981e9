"""Five tasks of GLUE with label words, as in the paper's experiments with T5 (arXiv 2407.05000, section 4.1).

The prompts are those of the authors' code. So are the label words where each is one token in the tokenizers of T5,
Llama and SmolLM2; "unacceptable" and "entailment" are not, so CoLA, MNLI and QNLI have shorter ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

GLUE = "nyu-mll/glue"
UNKNOWN = "-1"  # the label of rows whose class is kept secret


def labelled(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A row whose class is known; None if it is not."""
    return None if str(row["label"]).strip() == UNKNOWN else row


def _glue(
    title: str,
    what: str,
    source: str,
    name: str,
    asked: str,
    columns: tuple[str, ...],
    labels: list[str],
    train_rows: int,
    test_rows: int,
    test_split: str = "validation",
) -> Task:
    texts = "\n".join(f"{{{column}}}" for column in columns)
    keys = {
        "data": GLUE,
        "data_options": {"name": name},
        "split": "train",
        "held_out": GLUE,
        "held_out_options": {"name": name},
        "held_out_split": test_split,
        "overlap": "drop",  # sentences that training and development rows share are left out of training
        # no space after the colon: a tokenizer of T5's or Llama's kind puts it before the label word itself
        "prompt": f"classify the {asked}: {texts}\nresult:",
        "target": "label",
        "labels": labels,
        "metric": "label_word",
        "sequence_length": 128,
        "too_long": "drop",
    }
    needed = (*columns, "label")
    return Task(title, what, source, keys, needed, needed, labelled, labelled, train_rows, test_rows)


_TEXT = "sentiment of the text"
_SIMILARITY = "semantic similarity of the text"

MNLI = _glue(
    "MNLI",
    "whether one sentence follows from another, contradicts it, or neither",
    "Williams et al. 2018, arXiv 1704.05426; GLUE, arXiv 1804.07461",
    "mnli",
    _SIMILARITY,
    ("premise", "hypothesis"),
    ["yes", "maybe", "no"],
    392_702,
    9_815,
    "validation_matched",
)
SST2 = _glue(
    "SST-2",
    "whether a sentence of a film review is negative or positive",
    "Socher et al. 2013; GLUE, arXiv 1804.07461",
    "sst2",
    _TEXT,
    ("sentence",),
    ["negative", "positive"],
    67_349,
    872,
)
COLA = _glue(
    "CoLA",
    "whether a sentence is acceptable English",
    "Warstadt et al. 2019, arXiv 1805.12471; GLUE, arXiv 1804.07461",
    "cola",
    "grammaticality of the text",
    ("sentence",),
    ["wrong", "right"],
    8_551,
    1_043,
)
QNLI = _glue(
    "QNLI",
    "whether a sentence answers a question",
    "Rajpurkar et al. 2016, arXiv 1606.05250; GLUE, arXiv 1804.07461",
    "qnli",
    "semantic similarity of the question and the sentence",
    ("question", "sentence"),
    ["yes", "no"],
    104_743,
    5_463,
)
MRPC = _glue(
    "MRPC",
    "whether two sentences of the news mean the same",
    "Dolan and Brockett 2005; GLUE, arXiv 1804.07461",
    "mrpc",
    _SIMILARITY,
    ("sentence1", "sentence2"),
    ["different", "equivalent"],
    3_668,
    408,
)
