"""What a comparison found, as data: results.json is these classes, and tables, figures and the page are made from them.

    cells' folders --gather--> Results --> results.json --> tables, figures, page

Numbers are as they came out; nothing is rounded or chosen here but the best learning rate, which is chosen on
validation rows and never on test rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from ..errors import SettingsError
from ..run_folder import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RESULTS = "results.json"
FORMAT = 1

Status = Literal["done", "diverged", "failed", "missing"]


@dataclass(frozen=True)
class Curve:
    """Training loss over steps: nats per target token, one value a logging step."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """What was measured on one set of rows.

    Attributes:
        rows: how many.
        loss: mean over all target tokens, in nats; None where rows have no targets, but answers that a judge rates.
        score: the headline figure of the metric; None where nothing was judged.
        scores: further figures by name.
        items: each row's score, in the order of the rows: two runs of one seed have the same rows. Empty where nothing
            was judged.
        losses: each row's mean loss, in the same order; empty where rows have no targets.
        terms: each row's number of target tokens.
    """

    rows: int
    loss: float | None
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    items: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    terms: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """One cell of the grid.

    Attributes:
        variant: the name of a method with its settings, such as "LoRA-GA, gamma 4096".
        method: its name in METHODS.
        rank: of the adapter; None where all parameters are trained.
        learning_rate: the peak that was used; None if it is not known, since the run failed before.
        is_auto: whether that was suggested and not given.
        seed: of the run.
        status: how it ended. A run whose loss was not finite has diverged: that is a result; a failed one is none.
        problem: why it is not done, in one line.
        trainable_parameters: how many.
        steps: training steps that were done.
        tokens: tokens that were trained on.
        train_loss: mean of the last ten steps.
        curve: training loss over steps.
        validation: on rows held out of the training data, by which a learning rate is chosen.
        test: on the test rows.
        settings: every key of the run's recipe.
        seconds: by part: start, training, evaluation, a step (median).
        peak_memory: bytes.
    """

    variant: str
    method: str
    rank: int | None
    learning_rate: float | None
    is_auto: bool
    seed: int
    status: Status
    problem: str | None = None
    trainable_parameters: int | None = None
    steps: int | None = None
    tokens: int | None = None
    train_loss: float | None = None
    curve: Curve | None = None
    validation: Measured | None = None
    test: Measured | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    peak_memory: int | None = None


@dataclass(frozen=True)
class Best:
    """The best learning rate of a variant at a rank.

    Attributes:
        variant: whose.
        rank: of the adapter, or None.
        learning_rate: the best, by validation; None if no run of it is done.
        is_inside: whether a lower and a higher rate were tried and were worse. At the edge of what was tried a better
            one may lie outside, and a table says so.
    """

    variant: str
    rank: int | None
    learning_rate: float | None
    is_inside: bool


@dataclass(frozen=True)
class Results:
    """A whole comparison.

    Attributes:
        title: what is compared.
        model: the base model.
        task: the task's title, or the data's name.
        metric: how answers were judged; "none" if by the loss alone.
        score: what the headline figure is called, such as "accuracy".
        is_share: whether the score lies between 0 and 1 and is shown as a percentage.
        chosen_by: whether a best learning rate is that of the lowest validation "loss" or of the highest "score".
        reference: the variant that the others are compared with.
        command: what was typed.
        comparison: every key of the comparison's recipe.
        versions: of the packages.
        machine: what it ran on.
        runs: in the order of the grid.
        best: one for each variant and rank, in the order of the grid.
    """

    title: str
    model: str
    task: str
    metric: str
    score: str
    is_share: bool
    chosen_by: Literal["loss", "score"]
    reference: str
    command: str
    comparison: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    runs: tuple[Run, ...]
    best: tuple[Best, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants, in the order of the grid."""
        return tuple(dict.fromkeys(run.variant for run in self.runs))

    def done(self, variant: str, rank: int | None) -> tuple[Run, ...]:
        """The finished runs of a variant at a rank, `auto` ones left out."""
        return tuple(
            run
            for run in self.runs
            if run.variant == variant and run.rank == rank and run.status == "done" and not run.is_auto
        )


def write_results(results: Results, folder: Path) -> Path:
    """Writes results.json.

    Args:
        results: all of them.
        folder: the comparison's.

    Returns:
        The file.
    """
    write_json(folder / RESULTS, {"format": FORMAT, **asdict(results)})
    return folder / RESULTS


def read_results(file: Path) -> Results:
    """Reads a results.json.

    Args:
        file: that file.

    Returns:
        What `write_results` was given.

    Raises:
        SettingsError: if it is of another format.
        LabError: if it is damaged.
    """
    content = read_json(file)
    if content.pop("format", None) != FORMAT or {each.name for each in fields(Results)} != set(content):
        raise SettingsError(f"{file} is no results.json of this version; run the comparison again")
    return Results(
        **{
            **content,
            "runs": tuple(_run(each) for each in content["runs"]),
            "best": tuple(Best(**each) for each in content["best"]),
        }
    )


def _run(content: Mapping[str, Any]) -> Run:
    curve = content["curve"]
    return Run(
        **{
            **content,
            "curve": None if curve is None else Curve(tuple(curve["steps"]), tuple(curve["losses"])),
            "validation": _measured(content["validation"]),
            "test": _measured(content["test"]),
        }
    )


def _measured(content: Mapping[str, Any] | None) -> Measured | None:
    if content is None:
        return None
    return Measured(**{**content, **{key: tuple(content[key]) for key in ("items", "losses", "terms")}})
