"""The loss on rows that were not trained on, and answers that are judged, row by row.

    rows --batches--> loss of the target tokens, answers, score --a line each--> evaluation.jsonl --> Evaluation

A batch is a line for each of its rows, written when the batch is done: the same command goes on after the last one.
What is sampled is seeded by the batch, so that it does not depend on where an earlier call stopped.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from .errors import SettingsError
from .examples import IGNORED, collator_for, on_device, padding, prompt_batch
from .label_words import label_words
from .metrics import METRICS, Verdict
from .run_folder import read_lines, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from .examples import Example
    from .label_words import LabelWords
    from .progress import Progress
    from .prompts import Prompted
    from .recipe import Recipe

SAMPLE_STRIDE = 1_000_003  # between the seeds of a batch's samples: more than a data set has rows
CONFIDENCE = 1.96  # standard errors, for 95 %
# what a GenerationConfig leaves open is filled from the model's own, which may search beams or punish repetition
PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0}


@dataclass(frozen=True)
class Evaluation:
    """How a model does on held-out rows.

    Attributes:
        rows: how many.
        loss: mean over all target tokens, in nats; None if the rows have no targets.
        terms: how many target tokens.
        metric: how answers were judged; "none" if none was.
        score: mean over the rows' scores, or None.
        scores: further figures of the metric by name.
        right: how many answers were right, or None; also where an answer is more than right or wrong, or a row has
            several.
        low: lower end of Wilson's 95 % interval of right / rows, or None.
        high: its upper end, or None.
        note: what is still to be done, or "".
    """

    rows: int
    loss: float | None
    terms: int
    metric: str = "none"
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    right: int | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def accuracy(self) -> float | None:
        """The part of the answers that is right, from 0 to 1."""
        return None if self.right is None else self.right / self.rows

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values, with the accuracy."""
        return {**asdict(self), "accuracy": self.accuracy}


def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    recipe: Recipe,
    file: Path,
    settings: Mapping[str, Any],
    progress: Progress,
    what: str = "evaluation",
) -> Evaluation:
    """Measures a model on rows, in eval mode.

    Args:
        model: a causal or an encoder-decoder language model, with its adapter as it is active.
        tokenizer: the model's.
        examples: at least one.
        recipe: metric, batch size, how answers are generated, and the seed.
        file: JSON lines; its first line holds the settings, and what it holds is not done again.
        settings: what the lines depend on, as JSON values.
        progress: told the rows that are done.
        what: what that is called there.

    Returns:
        Loss and metric over all rows.

    Raises:
        SettingsError: if the file holds rows of other settings.
    """
    size = recipe.per_device_eval_batch_size
    done = _done_before(file, settings, size, len(examples))
    progress.begin(what, len(examples), len(done))
    words = label_words(tokenizer, examples[0].prompted, recipe) if _by_label_words(recipe) else None
    batches = [examples[start : start + size] for start in range(len(done), len(examples), size)]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            lines = _judged(model, tokenizer, batch, recipe, words, first_row=len(done))
            with file.open("a", encoding="utf-8") as stream:
                stream.write("".join(json.dumps(line) + "\n" for line in lines))
            done += lines
            progress.advance(len(batch), f"{what}: row {len(done)} of {len(examples)}")
    finally:
        model.train(was_training)
    return summary(done, recipe.metric)


def summary(lines: Sequence[Mapping[str, Any]], metric: str) -> Evaluation:
    """Sums up the lines of single rows."""
    terms = sum(line["terms"] for line in lines)
    loss = sum(line["loss"] * line["terms"] for line in lines) / terms if terms else None
    judged = METRICS[metric]
    if judged.judged_by == "nothing":
        return Evaluation(len(lines), loss, terms)
    if judged.judged_by == "another_model":
        return Evaluation(len(lines), loss, terms, metric)
    score = sum(line["score"] for line in lines) / len(lines)
    scores = {} if judged.figures is None else dict(judged.figures(lines))
    if not all("right" in line for line in lines):
        return Evaluation(len(lines), loss, terms, metric, score, scores)
    right = sum(line["right"] for line in lines)
    return Evaluation(len(lines), loss, terms, metric, score, scores, right, *wilson_interval(right, len(lines)))


def wilson_interval(right: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927): honest at 0 and at 1 too.

    Args:
        right: how many of them.
        rows: of how many, at least 1.

    Returns:
        Its two ends, between 0 and 1.
    """
    share, z = right / rows, CONFIDENCE
    centre = share + z * z / (2 * rows)
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _done_before(file: Path, settings: Mapping[str, Any], size: int, rows: int) -> list[dict[str, Any]]:
    """The rows of whole batches that the file holds; it is left with these alone, or begun."""
    first = {"settings": json.loads(json.dumps(settings))}
    lines = read_lines(file)
    if lines and lines[0] != first:
        there, here = lines[0].get("settings", {}), first["settings"]
        differing = ", ".join(key for key in {**here, **there} if there.get(key) != here.get(key))
        raise SettingsError(
            f"{file} holds an evaluation of other settings ({differing}); name another file, or remove it"
        )
    done = lines[1:]
    done = done if len(done) == rows else done[: len(done) // size * size]
    write_whole(file, "".join(json.dumps(line) + "\n" for line in [first, *done]))
    return done


def _by_label_words(recipe: Recipe) -> bool:
    return METRICS[recipe.metric].judged_by == "label_words"


def _judged(
    model: Any, tokenizer: Any, batch: Sequence[Example], recipe: Recipe, words: LabelWords | None, first_row: int
) -> list[dict[str, Any]]:
    logits, labels = _at_targets(model, tokenizer, batch)
    lines: list[dict[str, Any]] = [
        {"row": first_row + row, "loss": loss, "terms": count}
        for row, (loss, count) in enumerate(zip(*_losses(logits, labels), strict=True))
    ]
    metric = METRICS[recipe.metric]
    if words is not None:
        said = [_said(each, words) for each in words.probabilities(logits, labels).tolist()]
    elif metric.generates:
        said = _answered(model, tokenizer, batch, recipe, metric.judge, seed=recipe.seed + first_row)
    else:
        return lines
    if not metric.has_targets:
        lines = [{**line, "loss": None, "terms": 0} for line in lines]
    made = []
    for line, answer, each in zip(lines, said, batch, strict=True):
        target = each.prompted.target
        if words is not None:
            answer["score"] = float(answer["answer"] == target)
        right = {"right": answer["score"] == 1} if metric.is_binary and "answer" in answer else {}
        made.append({**line, **answer, "target": target, **right})
    return made


def _said(probabilities: Sequence[float], words: LabelWords) -> dict[str, Any]:
    best = max(range(len(probabilities)), key=lambda place: probabilities[place])
    named = dict(zip(words.labels, probabilities, strict=True))
    return {"answer": words.labels[best], "probabilities": named}


def _answered(
    model: Any,
    tokenizer: Any,
    batch: Sequence[Example],
    recipe: Recipe,
    judge: Callable[[str, Prompted], float | Verdict] | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Each row's answers with their scores: one as `answer`, several as `answers` and `scores`, in order.

    Without a judge there are no scores; notes are there where the judge gives some.
    """
    seeds = range(seed, seed + recipe.samples * SAMPLE_STRIDE, SAMPLE_STRIDE)
    drawn = [generate(model, tokenizer, batch, recipe, seed=each) for each in seeds]
    made: list[dict[str, Any]] = []
    for example, answers in zip(batch, zip(*drawn, strict=True), strict=True):
        if judge is None:
            made.append({"answer": answers[0]})
            continue
        verdicts = [judge(answer, example.prompted) for answer in answers]
        scores = [each.score if isinstance(each, Verdict) else each for each in verdicts]
        notes = [each.note for each in verdicts if isinstance(each, Verdict)]
        if recipe.samples == 1:
            made.append({"answer": answers[0], "score": scores[0], **({"note": notes[0]} if notes else {})})
        else:
            mean = sum(scores) / len(scores)
            made.append(
                {"answers": list(answers), "scores": scores, "score": mean, **({"notes": notes} if notes else {})}
            )
    return made


@torch.no_grad()
def _at_targets(model: Any, tokenizer: Any, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Logits (B, T, vocabulary) in float32, and the labels (B, T) that they predict."""
    tensors = on_device(model, collator_for(tokenizer, model)(batch))
    logits, labels = model(**tensors).logits.float(), tensors["labels"]
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits, labels


def _losses(logits: Tensor, labels: Tensor) -> tuple[list[float], list[int]]:
    """Each row's mean loss, and how many target tokens it is the mean of."""
    each = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")  # (B, T)
    terms = (labels != IGNORED).sum(dim=1)
    return (each.sum(dim=1) / terms).tolist(), terms.tolist()


@torch.no_grad()
def generate(model: Any, tokenizer: Any, batch: Sequence[Example], recipe: Recipe, seed: int) -> list[str]:
    """What a model answers, in words; the global random state stays as it is.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        batch: rows; their prompts are used.
        recipe: max_new_tokens, temperature and top_p.
        seed: of what is sampled.

    Returns:
        One answer a row.
    """
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    prompts = on_device(model, prompt_batch(batch, padding(tokenizer), is_encoder_decoder))
    own = model.generation_config
    sampling: dict[str, Any] = {"do_sample": False}
    if recipe.temperature > 0:
        sampling = {"do_sample": True, "temperature": recipe.temperature, "top_p": recipe.top_p}
        sampling |= {"top_k": 0, "min_p": 0.0, "typical_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=recipe.max_new_tokens,
        eos_token_id=_ends(own, tokenizer, batch),
        pad_token_id=padding(tokenizer),
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
        **PLAIN,
        **sampling,
    )
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        written = model.generate(**prompts, generation_config=config)
    new = written if is_encoder_decoder else written[:, prompts["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _ends(own: GenerationConfig, tokenizer: Any, batch: Sequence[Example]) -> list[int] | None:
    """The tokens that end an answer: the model's, the tokenizer's, and that by which a chat template ends a turn."""
    of_model = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    of_targets = {each.labels[-1] for each in batch} & set(tokenizer.all_special_ids)
    return sorted({*of_model, tokenizer.eos_token_id, *of_targets} - {None}) or None
