"""What a cell of a comparison takes, before it runs: steps, tokens, floating point operations, seconds, memory, disk.

    recipe + shapes of the model + lengths of the rows --> Cost

Operations (N parameters that each token is multiplied by): 2 N a token forward, 2 N more backward through frozen
weights, 4 N more where the weights are trained: 4 N of an adapter, 6 N of all parameters, 2 N of an evaluation.
Attention's own products and the adapter's are left out. The head's parameters count only where a logit is needed.

Memory of training, in bytes a number w (base), a (activations):
    weights       P w
    trained       adapter: T (4 + 4 + 8), in float32 with gradients and AdamW's two moments; all parameters: P (w + 2 w)
    activations   tokens of a micro-batch x inputs and outputs of the linear layers x a; with checkpointing a tenth
    logits        target tokens of a micro-batch x vocabulary x 12: in float32, as probabilities, as gradients
Memory of an evaluation: the weights, the logits of a batch twice, or keys and values of what is generated. On a CPU the
process itself has some too: that of Python and the libraries, as LoRA's run on SmolLM2-135M-Instruct had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..methods import METHODS
from ..metrics import METRICS
from ..run import RATE_BATCHES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..examples import Example
    from ..model_shape import ModelShape
    from ..recipe import Recipe

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}  # bytes of a number; auto: as most are saved
FLOAT32 = 4
LOGITS = 12
KEPT_WITH_CHECKPOINTING = 0.1
FORWARDS_OF_A_RATE = 10  # of a suggested learning rate, beside one gradient
SUGGESTIONS = 2  # before the first step, and when the warm-up ends
OF_THE_PROCESS = 0.85e9
STATE = 3  # of a checkpoint: the trained numbers and AdamW's two moments


@dataclass(frozen=True)
class Part:
    """The lengths of some rows, as they are padded.

    Attributes:
        rows: how many.
        inputs: tokens a row.
        targets: tokens a row whose logits are computed.
        prompt: tokens a row that an answer is generated from.
        is_counted: whether the rows were encoded, or the recipe's limits are taken.
    """

    rows: int
    inputs: float
    targets: float
    prompt: float
    is_counted: bool


@dataclass(frozen=True)
class RowLengths:
    """The rows of a run; None where it has none, or nothing is known of how many."""

    train: Part | None
    validation: Part | None
    held_out: Part | None


@dataclass(frozen=True)
class Cost:
    """What one run takes.

    Attributes:
        steps: of training.
        tokens: trained on, with padding.
        is_counted: whether the rows were encoded for it, or `tokens` and all that follows are upper bounds.
        training: floating point operations of training, with its start and suggested rate.
        evaluation: of the losses of rows that are not trained on.
        generation: of answers.
        trained: parameters.
        memory: bytes at once.
        kept: bytes on the disk when it is done.
        passing: bytes on the disk beside that while it runs.
    """

    steps: int
    tokens: float
    is_counted: bool
    training: float
    evaluation: float
    generation: float
    trained: int
    memory: float
    kept: float
    passing: float

    @property
    def operations(self) -> float:
        """All floating point operations."""
        return self.training + self.evaluation + self.generation

    @property
    def disk(self) -> float:
        """Bytes on the disk at once."""
        return self.kept + self.passing


def most(costs: Sequence[Cost]) -> Cost:
    """The highest of each figure.

    Args:
        costs: at least one.

    Returns:
        A cost that none of them exceeds.
    """
    highest = {each.name: max(getattr(cost, each.name) for cost in costs) for each in fields(Cost)}
    return Cost(**{**highest, "is_counted": all(cost.is_counted for cost in costs)})


def lengths_of(examples: Sequence[Example], size: int, is_encoder_decoder: bool) -> Part | None:
    """Counts encoded rows.

    Args:
        examples: in any order.
        size: rows of a batch, which are padded to the longest.
        is_encoder_decoder: whether prompt and target are two sequences.

    Returns:
        Their lengths; None of no rows.
    """
    if not examples:
        return None
    inputs = targets = prompt = 0
    for start in range(0, len(examples), size):
        batch = examples[start : start + size]
        width = max(len(each.input_ids) for each in batch)
        labelled = [len(each.labels) if is_encoder_decoder else width - _first_label(each) + 1 for each in batch]
        inputs += width * len(batch)
        targets += min(max(labelled), max(map(len, (each.labels for each in batch)))) * len(batch)
        prompt += max(len(each.prompt_ids) for each in batch) * len(batch)
    count = len(examples)
    return Part(count, inputs / count, targets / count, prompt / count, is_counted=True)


def _first_label(example: Example) -> int:
    return next((place for place, label in enumerate(example.labels) if label >= 0), len(example.labels))


def limits_of(recipe: Recipe, rows: int | None) -> Part | None:
    """The most that rows can be which were not read.

    Args:
        recipe: says how long a row may be.
        rows: how many; None if that is not known.

    Returns:
        Their lengths; None where their number is not known.
    """
    if rows is None:
        return None
    longest = recipe.sequence_length
    return Part(rows, longest, 3 if recipe.labels else longest, longest, is_counted=False)  # a label word and its end


def cost_of(recipe: Recipe, shape: ModelShape, rows: RowLengths) -> Cost | None:
    """What a run takes.

    Args:
        recipe: of the run.
        shape: of its model.
        rows: that it trains and is evaluated on.

    Returns:
        The cost; None where neither the number of rows nor that of steps is known.
    """
    train = rows.train or (limits_of(recipe, 1) if recipe.max_steps else None)
    if train is None:
        return None
    batch = recipe.per_device_train_batch_size
    steps = steps_of(recipe, train.rows)
    seen = steps * batch * recipe.gradient_accumulation_steps
    if recipe.max_steps is None:
        seen = min(seen, math.ceil(train.rows * recipe.num_train_epochs))
    evaluated = [part for part in (rows.validation, rows.held_out) if part is not None]
    judged = [rows.held_out, rows.validation if recipe.validation_metric else None]
    trained = trained_parameters(recipe, shape)
    return Cost(
        steps=steps,
        tokens=seen * (train.inputs + (train.targets if shape.is_encoder_decoder else 0)),
        is_counted=train.is_counted,
        training=seen * _forward(shape, train) * _passes(recipe) + _of_the_start(recipe, shape, train),
        evaluation=sum(part.rows * _forward(shape, part) for part in evaluated),
        generation=sum(_of_answers(recipe, shape, part) for part in judged if part is not None),
        trained=trained,
        memory=_memory(recipe, shape, train, evaluated, trained),
        kept=_kept(recipe, trained),
        passing=_passing(recipe, trained, steps),
    )


def steps_of(recipe: Recipe, rows: int) -> int:
    """The steps of a run on one device, as Trainer counts them."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    batches = math.ceil(rows / recipe.per_device_train_batch_size)
    an_epoch = max(1, math.ceil(batches / recipe.gradient_accumulation_steps))
    return math.ceil(recipe.num_train_epochs * an_epoch)


def trained_parameters(recipe: Recipe, shape: ModelShape) -> int:
    """How many parameters a method trains."""
    method = METHODS[recipe.method]
    if not method.adapter:
        return shape.parameters
    if method.peft == "adalora":
        first = recipe.init_r or math.ceil(1.5 * recipe.rank)
        return shape.adapter(first) + first * len(shape.linear)
    magnitudes = shape.outputs if method.peft == "dora" else 0
    return shape.adapter(2 * recipe.rank if method.mirrored else recipe.rank) + magnitudes


def _forward(shape: ModelShape, part: Part) -> float:
    """Operations of one row's forward pass."""
    if shape.is_encoder_decoder:
        body = shape.encoder * part.inputs + shape.body * part.targets
    else:
        body = shape.body * part.inputs
    return 2 * (body + shape.head * part.targets)


def _passes(recipe: Recipe) -> int:
    """Training's operations as forward passes: forward, backward, and again forward with checkpointing."""
    return (2 if METHODS[recipe.method].adapter else 3) + recipe.gradient_checkpointing


def _of_the_start(recipe: Recipe, shape: ModelShape, train: Part) -> float:
    method, one = METHODS[recipe.method], recipe.per_device_train_batch_size * _forward(shape, train)
    passes = 0.0
    if method.uses_batches and recipe.gradients is None:
        passes += recipe.gradient_batches * (1 if method.peft == "eva" else 3)
    if recipe.learning_rate == "auto":
        passes += SUGGESTIONS * RATE_BATCHES * (_passes(recipe) + FORWARDS_OF_A_RATE)
    return passes * one


def _of_answers(recipe: Recipe, shape: ModelShape, part: Part) -> float:
    if not METRICS[recipe.metric].generates:
        return 0.0
    prompt = shape.encoder if shape.is_encoder_decoder else shape.body
    an_answer = 2 * (prompt * part.prompt + (shape.body + shape.head) * recipe.max_new_tokens)
    return part.rows * recipe.samples * an_answer


def _memory(recipe: Recipe, shape: ModelShape, train: Part, evaluated: Sequence[Part], trained: int) -> float:
    method, weight = METHODS[recipe.method], WIDTHS[recipe.dtype]
    number = 2 if recipe.trainer.get("bf16") or recipe.trainer.get("fp16") else weight
    if method.adapter:
        fixed = STATE * FLOAT32 * trained + FLOAT32 * trained
        if method.scheme is not None and recipe.offset == "adapter" and not method.mirrored:
            fixed += FLOAT32 * trained  # what is subtracted
    else:
        fixed = STATE * weight * trained
    batch = recipe.per_device_train_batch_size
    saved = shape.saved * number * (KEPT_WITH_CHECKPOINTING if recipe.gradient_checkpointing else 1)
    tokens = batch * (train.inputs if not shape.is_encoder_decoder else (train.inputs + train.targets) / 2)
    training = fixed + tokens * saved + batch * train.targets * shape.vocabulary * LOGITS
    at_once = recipe.per_device_eval_batch_size
    measured = [at_once * part.targets * shape.vocabulary * 2 * FLOAT32 for part in evaluated]
    if METRICS[recipe.metric].generates:
        measured += [at_once * (part.prompt + recipe.max_new_tokens) * shape.cache * weight for part in evaluated]
    return shape.parameters * weight + max([training, *measured])


def _kept(recipe: Recipe, trained: int) -> float:
    """A finished cell keeps its adapter, which with a start that was subtracted has twice the rank."""
    method = METHODS[recipe.method]
    if not method.adapter:
        return 0.0
    doubled = (method.scheme is not None and not method.mirrored and recipe.offset != "none") or method.changes_base
    return FLOAT32 * trained * (2 if doubled else 1)


def _passing(recipe: Recipe, trained: int, steps: int) -> float:
    """Checkpoints, one more than are kept while it is written, and the start or a whole model."""
    width = FLOAT32 if METHODS[recipe.method].adapter else WIDTHS[recipe.dtype]
    every = recipe.save_steps if recipe.save_steps >= 1 else max(1, math.ceil(recipe.save_steps * steps))
    written = max(1, math.ceil(steps / every))
    checkpoints = written if recipe.save_total_limit is None else min(written, recipe.save_total_limit + 1)
    return width * trained * (STATE * checkpoints + 1)
