"""The demo: LoRA and LoRA-GA fine-tune a small language model on a task that it cannot do.

    demo.yaml --> base --> gradient --> suggested rates --> runs at each method's best and the common rate --> Outcome

Each part is what `loraga evaluate`, `loraga estimate` and `loraga train` do, in a folder of its own within the demo's,
so the same command goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from . import rates as rates_file
from .curves import final_loss, steps_until
from .errors import SettingsError
from .evaluate_run import evaluate_recipe
from .figures import Curve, draw_losses
from .initial import estimate
from .methods import METHODS
from .recipe_check import load_recipe
from .recipe_file import recipe_values
from .rows import read_rows
from .run import run, suggest
from .run_folder import (
    EVALUATION,
    METRICS,
    RATE,
    RESULT,
    RunFolder,
    differences,
    folder_of,
    read_json,
    read_lines,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .progress import WorkProgress
    from .rates import Rates
    from .recipe import Recipe

RECIPE = "demo.yaml"
DEMO_METHODS = ("lora", "lora_ga")
RESULTS, PICTURE = "results.json", "loss.png"
BASE, BASE_ROWS, GRADIENTS, GRADIENT_FACTS = "base.json", "base.jsonl", "gradients.safetensors", "gradients.json"
COLOURS = {"lora": "tab:blue", "lora_ga": "tab:orange"}
EXAMPLES = 3  # answers shown
RATE_BATCHES = 4

# What each costs in training steps, so that one bar says how much is left.
STEPS_EACH = {"training": 1.0, "evaluation": 0.075, "gradient": 9.0, "suggestion": 7.0 * RATE_BATCHES}
SILENT = Console(quiet=True)


@dataclass(frozen=True)
class Row:
    """One line of the table; the base model has no method and no rate.

    Attributes:
        title: what was run.
        loss: on the held-out rows, in nats per target token.
        accuracy: exact match on the held-out rows, from 0 to 1.
        method: a key of METHODS.
        rate_kind: "best", "common" or "best and common".
        learning_rate: the peak.
        suggested_rate: what `suggest_learning_rate` says for the method's start.
        steps_to_lora: step at which the mean loss of ten steps reached LoRA's final one at the same kind of rate.
        seconds_initialisation: time to put the adapter on the model, with the estimate of the gradient.
        seconds_per_step: the median training step.
    """

    title: str
    loss: float
    accuracy: float
    method: str | None = None
    rate_kind: str = ""
    learning_rate: float | None = None
    suggested_rate: float | None = None
    steps_to_lora: int | None = None
    seconds_initialisation: float | None = None
    seconds_per_step: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What the demo found.

    Attributes:
        rows: the table.
        examples: (question, right answer, {who: what it said}).
        picture: the PNG of the loss curves.
        adapter: the folder of LoRA-GA's adapter at its best rate.
    """

    rows: tuple[Row, ...]
    examples: tuple[tuple[str, str, Mapping[str, str]], ...]
    picture: Path
    adapter: Path


def demo_recipe(folder: Path, steps: int | None = None, seed: int = 0, *, quick: bool = False) -> Recipe:
    """The recipe that comes with the package, for a folder.

    Args:
        folder: where the demo goes.
        steps: training steps a run; None for the recipe's own.
        seed: of rows and adapters.
        quick: a smoke run of everything, too short to say anything about the methods.

    Returns:
        The recipe, from which each run's is made.
    """
    with resources.as_file(resources.files(__package__).joinpath(RECIPE)) as file:
        recipe = load_recipe(file)
    steps = steps or int(recipe.max_steps or 0)
    size = recipe.per_device_train_batch_size
    if quick:
        steps, size = min(steps, 4), 4
        recipe = replace(recipe, held_out_rows=8)
    return replace(
        recipe,
        max_steps=steps,
        per_device_train_batch_size=size,
        rows=steps * size,
        seed=seed,
        output_dir=str(folder),
    )


def variant(recipe: Recipe, method: str, learning_rate: float | Literal["auto"], folder: Path) -> Recipe:
    """The recipe of one run: another method or rate, in a folder below."""
    return replace(
        recipe,
        method=method,
        gamma=recipe.gamma if METHODS[method].uses_gamma else None,
        learning_rate=learning_rate,
        output_dir=str(folder / f"{method}-{learning_rate}"),
    )


class Demo:
    """The demo's parts, in a folder.

    Args:
        recipe: what is run; its output folder is the demo's.
        rates: the learning rates; by default those that come with the package.
    """

    def __init__(self, recipe: Recipe, rates: Rates | None = None) -> None:
        self.recipe = recipe
        self.folder = folder_of(recipe).path
        self.rates = rates or rates_file.stored()

    def runs(self) -> list[tuple[str, float]]:
        """The (method, rate) pairs to run: best rates, then the common one; a pair that coincides is run once."""
        best = [(method, self.rates.best[method]) for method in DEMO_METHODS]
        return list(dict.fromkeys([*best, *((method, self.rates.common) for method in DEMO_METHODS)]))

    def work(self) -> float:
        """All of it, in training steps."""
        evaluation = STEPS_EACH["evaluation"] * int(self.recipe.held_out_rows or 0)
        one_run = STEPS_EACH["training"] * int(self.recipe.max_steps or 0) + evaluation
        before = evaluation + STEPS_EACH["gradient"] + len(DEMO_METHODS) * STEPS_EACH["suggestion"]
        return before + len(self.runs()) * one_run

    def carry_out(self, progress: WorkProgress) -> Outcome:
        """Does every part that is not done yet, and sums up.

        Args:
            progress: told about the work done, in training steps.

        Returns:
            The table and what goes with it; also written into the folder.
        """
        self._evaluate_base(_Part(progress, "base"))
        self._estimate(_Part(progress, "gradient"))
        for method in DEMO_METHODS:
            self._suggest(method, _Part(progress, f"learning rate for {METHODS[method].title}"))
        for method, rate in self.runs():
            run(self._run(method, rate), SILENT, _Part(progress, f"{METHODS[method].title} at {rate:g}"))
        return self._summary()

    def _run(self, method: str, rate: float | Literal["auto"]) -> Recipe:
        made = variant(self.recipe, method, rate, self.folder / "runs")
        return replace(made, gradients=str(self.folder / GRADIENTS)) if METHODS[method].uses_gradient else made

    def _suggestion(self, method: str) -> Recipe:
        return replace(self._run(method, "auto"), output_dir=str(self.folder / "suggestions" / method))

    def _evaluate_base(self, part: _Part) -> None:
        file = self.folder / BASE
        if self._is_there(file):
            part.begin("evaluation", *[read_json(file)["rows"]] * 2)
        else:
            found = evaluate_recipe(self.recipe, None, True, self.folder / BASE_ROWS, SILENT, part)
            write_json(file, {**found.to_dict(), "recipe": recipe_values(self.recipe)})

    def _estimate(self, part: _Part) -> None:
        file = self.folder / GRADIENT_FACTS
        is_there = self._is_there(file)
        part.begin("gradient", 1, int(is_there))
        if not is_there:
            made = estimate(self.recipe, self.folder / GRADIENTS, SILENT)
            write_json(file, {**made, "recipe": recipe_values(self.recipe)})
            part.advance(1, "done")

    def _is_there(self, file: Path) -> bool:
        """Whether a part is done; one of another demo is refused."""
        if not file.is_file():
            return False
        if differing := differences(read_json(file)["recipe"], self.recipe):
            raise SettingsError(
                f"{self.folder} is the folder of another demo ({differing}); remove it, or name another one"
            )
        return True

    def _suggest(self, method: str, part: _Part) -> None:
        recipe = self._suggestion(method)
        known = (folder_of(recipe) / RATE).is_file()
        part.begin("suggestion", 1, int(known))
        rate = suggest(recipe, SILENT, RATE_BATCHES)
        if not known:
            part.advance(1, f"{rate:.1e}")

    def _summary(self) -> Outcome:
        outcome = Outcome(
            rows=self._rows(),
            examples=self._examples(),
            picture=self.folder / PICTURE,
            adapter=self._folder_of("lora_ga", self.rates.best["lora_ga"]) / RESULT,
        )
        draw_losses(self._curves(), outcome.picture, "chain_sum: identical batches for each run")
        runs = {f"{method} at {rate:g}": self._metrics(method, rate) for method, rate in self.runs()}
        content = {"recipe": recipe_values(self.recipe), "table": [vars(row) for row in outcome.rows], "runs": runs}
        write_json(self.folder / RESULTS, content)
        return outcome

    def _folder_of(self, method: str, rate: float) -> RunFolder:
        return folder_of(self._run(method, rate))

    def _metrics(self, method: str, rate: float) -> dict[str, Any]:
        folder = self._folder_of(method, rate)
        return {**folder.read_json(METRICS), "losses": folder.losses()}

    def _rows(self) -> tuple[Row, ...]:
        base = read_json(self.folder / BASE)
        rows = [Row("base", base["loss"], base["accuracy"])]
        for kind, chosen in self._kinds().items():
            target = final_loss(self._metrics("lora", chosen["lora"])["losses"])
            rows += [self._row(method, rate, kind, target) for method, rate in chosen.items()]
        return tuple(rows)

    def _kinds(self) -> dict[str, dict[str, float]]:
        best = {method: self.rates.best[method] for method in DEMO_METHODS}
        common = dict.fromkeys(DEMO_METHODS, self.rates.common)
        return {"best and common": best} if best == common else {"best": best, "common": common}

    def _row(self, method: str, rate: float, kind: str, target: float) -> Row:
        metrics = self._metrics(method, rate)
        suggestion = folder_of(self._suggestion(method)).read_json(RATE)
        gradient = read_json(self.folder / GRADIENT_FACTS)["seconds"] if METHODS[method].uses_gradient else 0.0
        return Row(
            title=METHODS[method].title,
            method=method,
            rate_kind=kind,
            learning_rate=rate,
            suggested_rate=suggestion["value"],
            loss=metrics["held_out"]["loss"],
            accuracy=metrics["held_out"]["accuracy"],
            steps_to_lora=steps_until(metrics["losses"], target),
            seconds_initialisation=gradient + metrics["seconds_start"],
            seconds_per_step=metrics["seconds_per_step"],
        )

    def _curves(self) -> list[Curve]:
        best = self.rates.best
        return [
            Curve(
                label=f"{METHODS[method].title}, learning rate {rate:g}",
                losses=self._metrics(method, rate)["losses"],
                colour=COLOURS[method],
                dashed=rate != best[method],
            )
            for method, rate in self.runs()
        ]

    def _examples(self) -> tuple[tuple[str, str, Mapping[str, str]], ...]:
        said = {"base": read_answers(self.folder / BASE_ROWS)}
        for method in DEMO_METHODS:
            said[METHODS[method].title] = read_answers(self._folder_of(method, self.rates.best[method]) / EVALUATION)
        asked = read_rows(self.recipe).held_out[:EXAMPLES]
        return tuple(
            (row["question"], row["answer"], {who: answers[index] for who, answers in said.items()})
            for index, row in enumerate(asked)
        )


class _Part:
    """Counts a part of the demo in training steps on the bar of the whole."""

    def __init__(self, whole: WorkProgress, title: str) -> None:
        self._whole, self._title, self._unit = whole, title, 1.0

    def begin(self, what: str, total: float, done: float) -> None:
        """A part of the part begins: so many steps, rows, or one whole."""
        self._unit = STEPS_EACH[what]
        self._whole.skip(done * self._unit, f"{self._title}: {what}")

    def advance(self, work: float, note: str) -> None:
        """Some of it was done."""
        self._whole.advance(work * self._unit, f"{self._title}: {note}")


def read_answers(file: Path) -> list[str]:
    """The answers of an evaluation's rows."""
    return [line["answer"] for line in read_lines(file)[1:]]
