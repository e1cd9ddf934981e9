"""The demo on a console: what it will do, how far it is, and the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from . import smollm2
from .demo import RESULTS, Demo, Outcome, Row, demo_recipe
from .methods import METHODS
from .progress import WorkProgress
from .quiet import quiet_libraries
from .rows import read_rows

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from .recipe import Recipe

TASK = "chain_sum"
HEADINGS = ("learning rate", "suggested", "held-out\nloss", "exact\nmatch", "steps to\nLoRA's end", "start", "step")


def show_demo(folder: Path, steps: int, seed: int, quick: bool, console: Console) -> Outcome:
    """Runs the demo and shows it.

    Args:
        folder: where everything goes.
        steps: training steps a run.
        seed: of rows and adapters.
        quick: only a smoke run.
        console: where it is shown.

    Returns:
        What was found.
    """
    demo = Demo(demo_recipe(folder, steps, seed, quick=quick))
    _announce(demo, console)
    if not smollm2.is_converted():
        console.print(f"Converting {smollm2.TITLE} once, about half a minute ...", highlight=False)
        with quiet_libraries():
            smollm2.converted()
    with WorkProgress(console) as progress:
        progress.begin("demo", demo.work())
        outcome = demo.carry_out(progress)
    _show(demo, outcome, console, quick=quick)
    return outcome


def _announce(demo: Demo, console: Console) -> None:
    recipe = demo.recipe
    row = read_rows(recipe).held_out[0]
    console.print(
        f"[bold]{smollm2.TITLE} learns {TASK}[/bold], a task of reasoning-gym with one right answer "
        f"a question:\n  {escape(row['question'])}  ->  {escape(row['answer'])}",
        highlight=False,
    )
    runs = ", ".join(f"{METHODS[method].title} at {rate:g}" for method, rate in demo.runs())
    console.print(
        f"Base model, then {len(demo.runs())} runs of {recipe.max_steps} steps with "
        f"{recipe.per_device_train_batch_size} questions each: {runs}. Each is asked {recipe.held_out_rows} questions "
        f"that no run trained on.\nBoth methods: all linear layers, r={recipe.rank}, alpha={recipe.alpha:g}; LoRA-GA "
        f"with gamma={recipe.gamma:g}. Learning rates: each method's best of a search, and their common best.",
        highlight=False,
    )
    console.print(f"Everything goes to {demo.folder}; interrupted, the same command goes on.", highlight=False)


def _show(demo: Demo, outcome: Outcome, console: Console, *, quick: bool) -> None:
    console.print(_table(outcome.rows, demo.recipe))
    if quick:
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


def _table(rows: tuple[Row, ...], recipe: Recipe) -> Table:
    table = Table(
        title=f"{TASK}, {recipe.max_steps} steps, {recipe.held_out_rows} held-out questions",
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
