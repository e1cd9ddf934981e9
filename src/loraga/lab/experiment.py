"""The experiment that the demo shows and that the search tunes: one model, one task, one shape of adapter.

    Experiment --seed--> items, batches
    (method, learning rate) --start--> adapter --train--> losses --evaluate--> a record of JSON values

Work is counted in training steps, so that a progress bar can say how much is left: `Cost` holds what everything else
costs in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from loraga import suggest_learning_rate

from . import smollm2
from .encoding import batches, on_device
from .evaluation import evaluate, greedy_answers
from .methods import METHODS, Adapter, Started
from .task import Item, Splits, SplitSizes, Task, split
from .training import train

if TYPE_CHECKING:
    from pathlib import Path

# Two numbers of two digits make 16,200 questions, so that held-out and training items are alike: with one digit too,
# the held-out items, which are drawn first and repeat none, would take most of the easy questions.
TASK = Task(
    name="chain_sum",
    module="arithmetic.chain_sum",
    dataset="ChainSumDataset",
    settings_class="ChainSumConfig",
    settings={"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
)

GRADIENT_BATCHES = 8
RATE_BATCHES = 4
EXAMPLES = 3  # answers kept for show
ANSWERS_COST = 2.0  # of writing them, in training steps

Advance = Callable[[float, str], None]  # (work done, in training steps; what it was)


@dataclass(frozen=True)
class Experiment:
    """What a run depends on beside its method and its learning rate."""

    steps: int = 60
    seed: int = 0
    batch_size: int = 12
    test: int = 200  # held-out items
    validation: int = 200  # other held-out items, for choosing rates
    adapter: Adapter = field(default_factory=Adapter)
    task: Task = TASK

    @cached_property
    def splits(self) -> Splits:
        """The items, dealt into disjoint splits."""
        sizes = SplitSizes(
            test=self.test,
            validation=self.validation,
            rate=RATE_BATCHES * self.batch_size,
            gradient=GRADIENT_BATCHES * self.batch_size,
            train=self.steps * self.batch_size,
        )
        return split(self.task, sizes, self.seed)

    @property
    def cost(self) -> Cost:
        """What the parts of this experiment cost."""
        return Cost(self)

    def settings(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {"model": smollm2.NAME, **asdict(self)}

    def start(self, method: str, model: Any, tokenizer: Any) -> Started:
        """Puts a method's adapter on a fresh base model."""
        ready = batches(tokenizer, self.splits.gradient, self.batch_size)
        return METHODS[method].start(model, ready, self.adapter, self.seed)


@dataclass(frozen=True)
class Cost:
    """Work in training steps, roughly: a step is one forward pass and a backward pass that costs as much."""

    experiment: Experiment

    def start(self, method: str) -> float:
        """Starting an adapter: for LoRA-GA a gradient pass, and a check that costs a step at most."""
        return GRADIENT_BATCHES + 1.0 if METHODS[method].uses_batches else 0.0

    def evaluation(self, items: int) -> float:
        """A forward pass over the items, and a few answers in words."""
        return 0.5 * items / self.experiment.batch_size + ANSWERS_COST

    def suggestion(self, method: str) -> float:
        """A gradient pass, and about ten forward passes."""
        return self.start(method) + 6.0 * RATE_BATCHES

    def run(self, method: str, items: int) -> float:
        """Start, training and evaluation."""
        return self.start(method) + self.experiment.steps + self.evaluation(items)


def run_key(method: str, learning_rate: float) -> str:
    """What a run is called among the results."""
    return f"run, {method} at {learning_rate:g}"


def time_one_step(experiment: Experiment) -> float:
    """Seconds that a LoRA step takes on this machine now: the first batch, forward and backward, the faster of two."""
    model, tokenizer = smollm2.load()
    lora = experiment.start("lora", model, tokenizer).model.train()
    (batch,) = batches(tokenizer, experiment.splits.train[: experiment.batch_size], experiment.batch_size)
    batch = on_device(lora, batch)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        lora(**batch).loss.backward()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def evaluate_base(experiment: Experiment, advance: Advance) -> dict[str, Any]:
    """The base model on the test items: loss, accuracy, examples."""
    model, tokenizer = smollm2.load()
    return _evaluation(experiment, model, tokenizer, experiment.splits.test, "base", advance)


def suggest_rate(experiment: Experiment, method: str, picture: Path, advance: Advance) -> dict[str, Any]:
    """What `loraga.suggest_learning_rate` says for a method's start, on items used for nothing else."""
    title = METHODS[method].title
    model, tokenizer = smollm2.load()
    advance(0, f"learning rate for {title}")
    started = experiment.start(method, model, tokenizer).model
    rate = suggest_learning_rate(
        started, batches(tokenizer, experiment.splits.rate, experiment.batch_size), seed=experiment.seed
    )
    rate.plot(picture)
    advance(experiment.cost.suggestion(method), f"learning rate for {title}: {rate.value:.1e}")
    return {"value": rate.value, "low": rate.low, "high": rate.high, "seconds": rate.seconds, "curve": rate.curve}


def run(
    experiment: Experiment,
    method: str,
    learning_rate: float,
    items: Sequence[Item],
    advance: Advance,
    save: Path | None = None,
) -> dict[str, Any]:
    """One fine-tuning run from a fresh base model.

    Args:
        experiment: everything but the two choices that follow.
        method: a key of METHODS.
        learning_rate: the peak.
        items: held-out items to evaluate on.
        advance: told about the work done.
        save: a folder for the trained adapter, or None.

    Returns:
        JSON values: loss and accuracy on the items, each step's training loss, and what things took.
    """
    title = f"{METHODS[method].title} at {learning_rate:g}"
    model, tokenizer = smollm2.load()
    advance(0, f"{title}: start")
    started = experiment.start(method, model, tokenizer)
    advance(experiment.cost.start(method), f"{title}: start")
    losses: list[float] = []

    def on_step(loss: float) -> None:
        losses.append(loss)
        recent = losses[-10:]
        advance(1, f"{title}: step {len(losses)} of {experiment.steps}, loss {sum(recent) / len(recent):.3f}")

    ready = batches(tokenizer, experiment.splits.train, experiment.batch_size)
    trained = train(started.model, ready, learning_rate, experiment.seed, on_step)
    if save is not None:
        started.model.save_pretrained(save)
    record = _evaluation(experiment, started.model, tokenizer, items, title, advance)
    return {
        "method": method,
        "learning_rate": learning_rate,
        **record,
        "losses": trained.losses,
        "seconds_per_step": trained.seconds_per_step,
        "seconds_initialisation": started.seconds,
        "start": started.summary,
    }


def _evaluation(
    experiment: Experiment, model: Any, tokenizer: Any, items: Sequence[Item], title: str, advance: Advance
) -> dict[str, Any]:
    cost = experiment.cost.evaluation(len(items))
    note = f"{title}: answering {len(items)} questions"
    advance(0, note)
    found = evaluate(model, tokenizer, items, lambda part: advance(part * (cost - ANSWERS_COST), note))
    answers = greedy_answers(model, tokenizer, items[:EXAMPLES])
    advance(ANSWERS_COST, note)
    return {"loss": found.loss, "accuracy": found.accuracy, "answers": answers}
