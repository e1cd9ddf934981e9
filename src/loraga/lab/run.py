"""A recipe carried out: from its text to a trained adapter in a folder.

    recipe --> rows --> examples --> base model --> start --> learning rate --> training --> adapter --> evaluation

Every part leaves its result in the folder; the same recipe goes on after the last one.
"""

from __future__ import annotations

import statistics
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from . import model_card
from .arguments import training_arguments
from .curves import final_loss
from .doctor import versions
from .evaluate_run import evaluate_result
from .figures import Curve, draw_losses
from .interruption import Interrupted, interruptible
from .methods import METHODS
from .own_training import own_training
from .preparation import Prepared, prepare
from .quiet import quiet_libraries
from .rate import RateAfterWarmUp, first_rate, peak_rate
from .run_folder import (
    METRICS,
    PICTURE,
    RATE,
    START,
    START_FACTS,
    TRAINED,
    VERSIONS,
    RunFolder,
    folder_of,
    open_folder,
    require_own,
    require_same_data,
    result_name,
)
from .starts import continued, load_base, start, trainable_parameters
from .training import peak_memory, train

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console

    from .evaluation import Evaluation
    from .interruption import Interruption
    from .progress import Progress
    from .recipe import Recipe

RATE_BATCHES = 8


def run(recipe: Recipe, console: Console, progress: Progress) -> dict[str, Any]:
    """Carries a recipe out in its folder, or what is left of it.

    Args:
        recipe: checked, with its output folder.
        console: where it says what it does.
        progress: told how far training and evaluation are.

    Returns:
        The content of metrics.json.

    Raises:
        SettingsError: if the recipe, its data or its folder cannot be used.
        LabError: if something fails on the way.
        Interrupted: if it was asked to stop; a checkpoint is written.
    """
    training_arguments(recipe)
    folder = folder_of(recipe)
    require_own(folder, recipe)
    if folder.is_done:
        return _done_before(folder.read_json(METRICS), progress)
    stopping = "stopping after this step, with a checkpoint; once more to stop at once"
    with quiet_libraries(), interruptible(lambda: console.print(stopping)) as interruption:
        prepared = prepare(recipe, console)
        with open_folder(recipe):
            require_same_data(folder, prepared.digest)
            folder.write_json(VERSIONS, versions())
            _train(recipe, prepared, folder, console, progress, interruption)
            metrics = _metrics(recipe, folder, evaluate_result(recipe, prepared, folder, progress))
            model_card.write(recipe, metrics, folder)
            folder.write_json(METRICS, metrics)
    return metrics


def suggest(recipe: Recipe, console: Console, batches: int = RATE_BATCHES) -> float:
    """Starts a recipe's method and suggests its learning rate, with its curve in the folder, and trains nothing.

    Args:
        recipe: with learning_rate: auto.
        console: where it says what it does.
        batches: micro-batches to use.

    Returns:
        The rate; of a folder that holds one already, that.
    """
    folder = folder_of(recipe)
    require_own(folder, recipe)
    if (folder / RATE).is_file():
        return folder.read_json(RATE)["value"]
    with quiet_libraries():
        prepared = prepare(recipe, console)
        with open_folder(recipe):
            model = load_base(recipe)
            draw = partial(prepared.data_for(model).micro_batches, recipe)
            started = _started(recipe, folder, model, draw, partial(console.print, highlight=False))
            own = own_training(recipe)
            return first_rate(folder, started, draw(recipe.gradient_batches, batches), recipe.seed, own)


def _train(
    recipe: Recipe,
    prepared: Prepared,
    folder: RunFolder,
    console: Console,
    progress: Progress,
    interruption: Interruption,
) -> None:
    """Everything up to the saved result; what is done already is not done again."""
    method = METHODS[recipe.method]
    result = folder / result_name(recipe)
    if (folder / TRAINED).is_file():
        steps = folder.read_json(TRAINED)["steps"]
        progress.begin("training", steps, steps)
        return
    model = load_base(recipe)
    data = prepared.data_for(model)
    say = partial(console.print, highlight=False)
    draw = partial(data.micro_batches, recipe)
    model = _started(recipe, folder, model, draw, say)
    own = own_training(recipe)
    rate, callbacks = recipe.learning_rate, []
    if rate == "auto":
        rate = first_rate(folder, model, draw(recipe.gradient_batches, RATE_BATCHES), recipe.seed, own)
        say(f"learning rate: {rate:.2g} suggested (auto)")
        later = partial(draw, recipe.gradient_batches + RATE_BATCHES, RATE_BATCHES)
        callbacks = [RateAfterWarmUp(folder, later, recipe.seed, say, own)]
    arguments = training_arguments(recipe, rate)
    state = train(model, prepared.tokenizer, data, arguments, folder, interruption, progress, callbacks, own)
    _draw(recipe, folder)
    if interruption.number is not None:
        raise Interrupted(
            interruption.number,
            f"stopped after step {state.global_step}, with a checkpoint in {folder.path}; the same command goes on "
            "from there",
        )
    own.save(model, result)
    if not method.adapter:
        prepared.tokenizer.save_pretrained(str(result))
    peak = peak_rate(folder) if recipe.learning_rate == "auto" else recipe.learning_rate
    facts = {"learning_rate": peak, "steps": state.global_step, "peak_memory": peak_memory()}
    facts |= {"trainable_parameters": trainable_parameters(model), "tokens": int(state.num_input_tokens_seen)}
    folder.write_json(TRAINED, facts)


def _started(
    recipe: Recipe,
    folder: RunFolder,
    model: Any,
    draw: Callable[[int, int], list[dict[str, Any]]],
    say: Callable[[str], None],
) -> Any:
    """The model with its start: a new one, kept in the folder, or the kept one."""
    method = METHODS[recipe.method]
    # What changes the weights is not in a directory that plain PEFT loads; the start is made anew, bit for bit.
    if (folder / START_FACTS).is_file() and recipe.offset != "weights" and not method.is_started_anew:
        return continued(model, recipe, folder / START)
    batches = draw(0, recipe.gradient_batches) if method.uses_batches and not recipe.gradients else []
    if batches:
        doing = "looking at" if method.uses_data else "estimating the gradient on"
        say(f"start: {doing} {len(batches)} micro-batches")
    started = start(model, recipe, batches or draw(0, 1))
    if method.adapter and not method.no_init:
        started.model.save_pretrained(str(folder / START))
    facts = {"seconds": started.seconds}
    if started.report is not None:
        say(f"start: {started.report.summary()}")
        facts |= {name: getattr(started.report, name) for name in ("loss_terms", "coverage", "cosine")}
    folder.write_json(START_FACTS, facts)
    return started.model


def _draw(recipe: Recipe, folder: RunFolder) -> None:
    if logged := folder.training_log():
        steps, losses = [line["step"] for line in logged], [line["loss"] for line in logged]
        curve = Curve(METHODS[recipe.method].title, losses, "tab:blue", steps=steps)
        draw_losses([curve], folder / PICTURE, recipe.data)


def _done_before(metrics: dict[str, Any], progress: Progress) -> dict[str, Any]:
    progress.begin("training", metrics["steps"], metrics["steps"])
    for part, what in (("validation", "validation"), ("held_out", "evaluation")):
        if metrics[part] is not None:
            progress.begin(what, metrics[part]["rows"], metrics[part]["rows"])
    return metrics


def _metrics(recipe: Recipe, folder: RunFolder, evaluations: Mapping[str, Evaluation | None]) -> dict[str, Any]:
    log = folder.training_log()
    losses = [line["loss"] for line in log]
    return {
        "method": recipe.method,
        **folder.read_json(TRAINED),
        "train_loss": final_loss(losses) if losses else None,
        **{part: None if found is None else found.to_dict() for part, found in evaluations.items()},
        "seconds_start": folder.read_json(START_FACTS)["seconds"],
        "seconds_training": log[-1]["seconds"] if log else None,
        "seconds_per_step": _median_step(log),
    }


def _median_step(log: Sequence[dict[str, Any]]) -> float | None:
    pairs = [(before, after) for before, after in pairwise(log) if after["step"] > before["step"]]
    steps = [(after["seconds"] - before["seconds"]) / (after["step"] - before["step"]) for before, after in pairs]
    return statistics.median(steps) if steps else None
