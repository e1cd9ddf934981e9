"""The demo on a console: what it will do, how far it is, and the table."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import smollm2
from .demo import RESULTS, Demo, Outcome, Row, quick
from .experiment import Experiment, time_one_step
from .methods import METHODS
from .progress import WorkProgress, spoken

if TYPE_CHECKING:
    from pathlib import Path

HEADINGS = ("learning rate", "suggested", "held-out\nloss", "exact\nmatch", "steps to\nLoRA's end", "start", "step")
WIDTH = 110  # columns, where the output is no terminal


def run(folder: Path, *, steps: int, seed: int, quick_run: bool, console: Console | None = None) -> Outcome:
    """Runs the demo and shows it.

    Args:
        folder: where everything goes.
        steps: training steps a run.
        seed: of items and adapters.
        quick_run: only a smoke run.
        console: where it is shown; by default the process's output.

    Returns:
        What was found.
    """
    console = console or _console()
    experiment = Experiment(steps=steps, seed=seed)
    demo = Demo(quick(experiment) if quick_run else experiment, folder)
    _quieten_libraries()
    _announce(demo, console)
    work = demo.work()
    open_parts = [part for part in work if not demo.is_done(part)]
    seconds = _time_step(demo, console) if open_parts else 0.0
    with WorkProgress(console, sum(work.values()), seconds) as progress:
        done = sum(cost for part, cost in work.items() if demo.is_done(part))
        if done:
            progress.skip(done)
        outcome = demo.carry_out(progress.advance)
    _show(demo, outcome, console, quick_run=quick_run)
    return outcome


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _quieten_libraries() -> None:
    # Progress bars and notices of the libraries below would tear this one's apart.
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("loraga").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _announce(demo: Demo, console: Console) -> None:
    experiment = demo.experiment
    item = experiment.splits.test[0]
    console.print(
        f"[bold]{smollm2.TITLE} learns {experiment.task.name}[/bold], a task of reasoning-gym with one right answer "
        f"a question:\n  {escape(item.question)}  ->  {escape(item.answer)}",
        highlight=False,
    )
    runs = ", ".join(f"{METHODS[method].title} at {rate:g}" for method, rate in demo.runs())
    console.print(
        f"Base model, then {len(demo.runs())} runs of {experiment.steps} steps with {experiment.batch_size} questions "
        f"each: {runs}. Each is asked {experiment.test} questions that no run trained on.\n"
        f"Both methods: all linear layers, r={experiment.adapter.rank}, alpha={experiment.adapter.alpha}; LoRA-GA with "
        f"gamma={experiment.adapter.gamma:g}. Learning rates: each method's best of a search, and their common best.",
        highlight=False,
    )
    console.print(f"Everything goes to {demo.folder}; interrupted, the same command goes on.", highlight=False)


def _time_step(demo: Demo, console: Console) -> float:
    if not smollm2.is_converted():
        console.print(f"Converting {smollm2.TITLE} once, about half a minute ...", highlight=False)
        smollm2.converted()
    seconds = time_one_step(demo.experiment)
    left = sum(cost for part, cost in demo.work().items() if not demo.is_done(part))
    console.print(f"A step takes {seconds:.1f} s here, the rest about {spoken(seconds * left)}.\n", highlight=False)
    return seconds


def _show(demo: Demo, outcome: Outcome, console: Console, *, quick_run: bool) -> None:
    console.print(_table(outcome.rows, demo.experiment))
    if quick_run:
        console.print("A smoke run: too short to say anything about the methods.", highlight=False)
    console.print(_examples(outcome))
    for line in (
        f"Loss curves        {outcome.picture}",
        f"All numbers        {demo.folder / RESULTS}",
        f"LoRA-GA's adapter  {outcome.adapter}",
        "",
        "The adapter is a plain LoRA of the original base model; plain PEFT loads it:",
        f'  base = transformers.AutoModelForCausalLM.from_pretrained("{smollm2.model_folder()}")',
        f'  model = peft.PeftModel.from_pretrained(base, "{outcome.adapter.resolve()}")',
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(rows: tuple[Row, ...], experiment: Experiment) -> Table:
    table = Table(
        title=f"{experiment.task.name}, {experiment.steps} steps, {experiment.test} held-out questions",
        caption="steps to LoRA's end: the step at which the mean training loss of ten steps reached LoRA's last one "
        "at the same kind of rate, on identical batches",
    )
    table.add_column("")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    steps = "" if row.method is None else "not reached" if row.steps_to_lora is None else str(row.steps_to_lora)
    kind = f" ({row.rate_kind})" if row.rate_kind else ""
    return [
        row.title,
        number(row.learning_rate, "g") + kind,
        number(row.suggested_rate, ".1e"),
        f"{row.loss:.3f}",
        f"{100 * row.accuracy:.1f} %",
        steps,
        number(row.seconds_initialisation, ".1f") + (" s" if row.method else ""),
        number(row.seconds_per_step, ".2f") + (" s" if row.method else ""),
    ]


def _examples(outcome: Outcome) -> Table:
    who = list(outcome.examples[0][2]) if outcome.examples else []
    table = Table(title="What they answer", show_lines=True)
    for heading in ("question", "right", *who):
        table.add_column(heading)
    for question, right, said in outcome.examples:
        table.add_row(*map(escape, (question, right, *(said[name] for name in who))))
    return table
