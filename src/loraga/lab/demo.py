"""The demo: LoRA and LoRA-GA fine-tune a small language model on a task that it cannot do.

    plan, timed step --> base --> suggested rates --> runs at each method's best and at the common rate --> Outcome

Each part is kept in results.json as soon as it is done; the same command goes on after the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from . import experiment as lab
from . import rates as rates_file
from .curves import final_loss, steps_until
from .experiment import Advance, Experiment, run_key
from .figures import Curve, draw_losses
from .methods import METHODS
from .store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .rates import Rates

RESULTS, PICTURE = "results.json", "loss.png"
COLOURS = {"lora": "tab:blue", "lora_ga": "tab:orange"}


@dataclass(frozen=True)
class Row:
    """One line of the table; the base model has no method and no rate.

    Attributes:
        title: what was run.
        loss: on the held-out items, in nats per answer token.
        accuracy: exact match on the held-out items, from 0 to 1.
        method: a key of METHODS.
        rate_kind: "best", "common" or "best and common".
        learning_rate: the peak.
        suggested_rate: what `suggest_learning_rate` says for the method's start.
        steps_to_lora: step at which the mean loss of ten steps reached LoRA's final one at the same kind of rate.
        seconds_initialisation: time to put the adapter on the model.
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


def quick(experiment: Experiment) -> Experiment:
    """A smoke run of everything, too short to say anything about the methods."""
    return replace(experiment, steps=min(experiment.steps, 4), batch_size=4, test=8, validation=8)


class Demo:
    """The demo's parts, in a folder.

    Args:
        experiment: what is run.
        folder: where results, picture and adapters go, and where a demo that was interrupted goes on.
        rates: the learning rates; by default those that come with the package.
    """

    def __init__(self, experiment: Experiment, folder: Path, rates: Rates | None = None) -> None:
        self.experiment = experiment
        self.folder = folder
        self.rates = rates or rates_file.stored()
        settings = {**experiment.settings(), "best_rates": self.rates.best, "common_rate": self.rates.common}
        self._store = Store(folder / RESULTS, settings)

    def runs(self) -> list[tuple[str, float]]:
        """The (method, rate) pairs to run: best rates, then the common one; a pair that coincides is run once."""
        best = [(method, self.rates.best[method]) for method in METHODS]
        return list(dict.fromkeys([*best, *((method, self.rates.common) for method in METHODS)]))

    def work(self) -> dict[str, float]:
        """{part: what it costs, in training steps}, in the order of the parts."""
        cost = self.experiment.cost
        parts = {"base": cost.evaluation(self.experiment.test)}
        parts |= {_suggestion_key(method): cost.suggestion(method) for method in METHODS}
        return parts | {run_key(*pair): cost.run(pair[0], self.experiment.test) for pair in self.runs()}

    def is_done(self, part: str) -> bool:
        """Whether a part of the work is in the results already."""
        return part in self._store.results

    def carry_out(self, advance: Advance) -> Outcome:
        """Does every part that is not done yet, and sums up.

        Args:
            advance: told about the work done.

        Returns:
            The table and what goes with it; also written into the folder.
        """
        self._store.once("base", partial(lab.evaluate_base, self.experiment, advance))
        for method in METHODS:
            picture = self.folder / f"learning_rate_{method}.png"
            suggest = partial(lab.suggest_rate, self.experiment, method, picture, advance)
            self._store.once(_suggestion_key(method), suggest)
        for method, rate in self.runs():
            self._store.once(run_key(method, rate), partial(self._run, method, rate, advance))
        return self._summary()

    def adapter(self, method: str, rate: float) -> Path:
        """The folder of a run's trained adapter."""
        return self.folder / "adapters" / f"{method}-{rate:g}"

    def _run(self, method: str, rate: float, advance: Advance) -> dict[str, Any]:
        return lab.run(
            self.experiment, method, rate, self.experiment.splits.test, advance, save=self.adapter(method, rate)
        )

    def _summary(self) -> Outcome:
        outcome = Outcome(
            rows=self._rows(),
            examples=self._examples(),
            picture=self.folder / PICTURE,
            adapter=self.adapter("lora_ga", self.rates.best["lora_ga"]),
        )
        draw_losses(self._curves(), outcome.picture, f"{self.experiment.task.name}: identical batches for each run")
        self._store.write_summary({"table": [vars(row) for row in outcome.rows]})
        return outcome

    def _record(self, method: str, rate: float) -> dict[str, Any]:
        return self._store.results[run_key(method, rate)]

    def _rows(self) -> tuple[Row, ...]:
        base = self._store.results["base"]
        rows = [Row("base", base["loss"], base["accuracy"])]
        for kind, chosen in self._kinds().items():
            target = final_loss(self._record("lora", chosen["lora"])["losses"])
            rows += [self._row(method, rate, kind, target) for method, rate in chosen.items()]
        return tuple(rows)

    def _kinds(self) -> dict[str, dict[str, float]]:
        best = {method: self.rates.best[method] for method in METHODS}
        common = dict.fromkeys(METHODS, self.rates.common)
        return {"best and common": best} if best == common else {"best": best, "common": common}

    def _row(self, method: str, rate: float, kind: str, target: float) -> Row:
        record = self._record(method, rate)
        return Row(
            title=METHODS[method].title,
            method=method,
            rate_kind=kind,
            learning_rate=rate,
            suggested_rate=self._store.results[_suggestion_key(method)]["value"],
            loss=record["loss"],
            accuracy=record["accuracy"],
            steps_to_lora=steps_until(record["losses"], target),
            seconds_initialisation=record["seconds_initialisation"],
            seconds_per_step=record["seconds_per_step"],
        )

    def _curves(self) -> list[Curve]:
        best = self.rates.best
        return [
            Curve(
                label=f"{METHODS[method].title}, learning rate {rate:g}",
                losses=self._record(method, rate)["losses"],
                colour=COLOURS[method],
                dashed=rate != best[method],
            )
            for method, rate in self.runs()
        ]

    def _examples(self) -> tuple[tuple[str, str, Mapping[str, str]], ...]:
        said = {"base": self._store.results["base"]["answers"]}
        for method in METHODS:
            said[METHODS[method].title] = self._record(method, self.rates.best[method])["answers"]
        return tuple(
            (item.question, item.answer, {who: answers[row] for who, answers in said.items()})
            for row, item in enumerate(self.experiment.splits.test[: lab.EXAMPLES])
        )


def _suggestion_key(method: str) -> str:
    return f"suggested rate, {method}"
