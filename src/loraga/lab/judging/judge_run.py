"""The answers of a run as MT-Bench's files, and their ratings in the run's results, at once or later.

evaluation.jsonl --> mt_bench/question.jsonl, model_answer/ --judge, when there is one--> model_judgment/ --> score
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LabError, SettingsError
from ..metrics import METRICS
from ..run_folder import EVALUATION, read_json, read_lines, write_json, write_whole
from ..run_folder import METRICS as RESULTS
from .chat_endpoint import Endpoint
from .judging import QUESTIONS, Judged, answers_name, judge_answers, write_answers
from .mt_bench import Question

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..evaluation import Evaluation
    from ..examples import Example
    from ..progress import Progress
    from ..recipe import Recipe

FOLDER = "mt_bench"
HOW = "`loraga judge {folder} --judge-url URL --judge-model MODEL`"


def rated(
    recipe: Recipe, rows: Sequence[Example], found: Evaluation, file: Path, saved: Path | None, progress: Progress
) -> Evaluation:
    """Writes the answers of an evaluation out for a judge, and has them rated if the recipe names one.

    Args:
        recipe: says which judge.
        rows: the questions.
        found: what was measured without a judge.
        file: the lines of the rows, with the answers.
        saved: what was evaluated; None for the base model.
        progress: told the questions that are done.

    Returns:
        The evaluation with its rating, or with a note on what is missing and how to go on; as it was, if the metric
        needs no judge.
    """
    if METRICS[recipe.metric].judged_by != "another_model":
        return found
    folder, name = file.parent / FOLDER, recipe.model if saved is None else _name(saved)
    questions = [Question.of(row.prompted.columns) for row in rows]
    answers = write_answers(folder, questions, [line["answer"] for line in read_lines(file)[1:]], name)
    how = HOW.format(folder=folder)
    if recipe.judge_url is None:
        return replace(found, note=f"{len(rows)} answers wait in {folder} for a judge: {how} rates them")
    references = None if recipe.judge_references is None else Path(recipe.judge_references).expanduser()
    endpoint = Endpoint(recipe.judge_url, str(recipe.judge_model))
    try:
        (judged,) = judge_answers(folder, endpoint, references, progress, only=name)
    except LabError as cause:
        return replace(found, note=f"{len(rows)} answers wait in {folder}, since {cause}; then {how} rates them")
    _rate_rows(file, answers, judged)
    return replace(found, **_result(judged, how))


def judge_folder(folder: Path, endpoint: Endpoint, references: Path | None, progress: Progress) -> list[Judged]:
    """Rates the answers that a run left, and writes the rating into its results.

    Args:
        folder: the run's, or that of its answers.
        endpoint: the judge.
        references: FastChat's reference answers; without, those of the questions.
        progress: told the questions that are done.

    Returns:
        How each model was rated whose answers are there.

    Raises:
        SettingsError: if there is nothing to rate.
    """
    answers = folder if (folder / QUESTIONS).is_file() else folder / FOLDER
    if not (answers / QUESTIONS).is_file():
        raise SettingsError(f"{folder} holds no answers to judge; `loraga evaluate` with metric: mt_bench writes them")
    judged = judge_answers(answers, endpoint, references, progress)
    results = answers.parent / RESULTS
    if results.is_file():
        _add_to(results, judged, HOW.format(folder=answers))
    return judged


def _add_to(results: Path, judged: Sequence[Judged], how: str) -> None:
    metrics = read_json(results)
    own = [each for each in judged if each.model == _name(results.parent / "adapter")]
    held_out = metrics.get("held_out")
    if own and held_out and METRICS[held_out["metric"]].judged_by == "another_model":
        _rate_rows(results.parent / EVALUATION, results.parent / FOLDER / answers_name(own[0].model), own[0])
        write_json(results, {**metrics, "held_out": {**held_out, **_result(own[0], how)}})


def _rate_rows(file: Path, answers: Path, judged: Judged) -> None:
    """Writes each rating beside its row in the evaluation's lines, whose order is that of the answers."""
    first, *lines = read_lines(file)
    numbers = [line["question_id"] for line in read_lines(answers)]
    rows = zip(lines, numbers, strict=True)
    rated_lines = [{**line, "score": judged.ratings.get(number)} for line, number in rows]
    write_whole(file, "".join(json.dumps(line) + "\n" for line in [first, *rated_lines]))


def _result(judged: Judged, how: str) -> Mapping[str, Any]:
    """What a rating sets in an evaluation."""
    note = ""
    if judged.unjudged:
        first, reason = next(iter(judged.unjudged.items()))
        note = (
            f"{len(judged.unjudged)} of {judged.questions} answers have no rating (question {first}: {reason}); the "
            f"score is over the other {len(judged.ratings)}; {how} asks for them again"
        )
    return {"score": judged.rating, "scores": {"judged": len(judged.ratings)}, "note": note}


def _name(saved: Path) -> str:
    """What a saved adapter or model is called: by its run."""
    return saved.resolve().parent.name if saved.name in ("adapter", "model") else saved.resolve().name
