import json
import math
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

from loraga import newest_complete_checkpoint
from loraga.lab.arguments import training_arguments
from loraga.lab.base_model import BaseModel
from loraga.lab.examples import encode_all
from loraga.lab.interruption import Interruption
from loraga.lab.preparation import Prepared
from loraga.lab.prompts import make_prompted
from loraga.lab.run_folder import RunFolder
from loraga.lab.starts import start
from loraga.lab.training import train
from tests.integration.common import adapter_state, assert_moved, assert_same

from .conftest import ROWS, Told, byte_tokenizer

TRAINED = ROWS[:16]
OF_THE_CLOCK = ("seconds", "peak_memory")


# every part that could hide an error in going on is there: dropout, accumulation, a second epoch
KEYS = {
    "method": "lora_ga",
    "dropout": 0.2,
    "learning_rate": 0.01,
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_steps": 3.0,
}


@pytest.fixture
def asked(recipe, tmp_path):
    """A function of keys that makes the recipe of a run, in a folder of its own name."""
    return lambda name="run", **keys: recipe(**{**KEYS, "output_dir": str(tmp_path / name), **keys})


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A function that gives a method's uninterrupted run."""

    @cache
    def make(method="lora_ga"):
        folder = tmp_path_factory.mktemp("whole")
        return Run(recipe(**{**KEYS, "output_dir": str(folder), "method": method, "dropout": dropout(method)}))

    return make


def dropout(method):
    return 0.0 if method == "full" else 0.2


def prepared(recipe, rows=TRAINED, held_out=(), *, is_encoder_decoder=False):
    parts = []
    for part in (rows, held_out):
        made = make_prompted(part, recipe, byte_tokenizer(), "rows.jsonl")
        parts.append(
            encode_all(byte_tokenizer(), made, recipe, "rows.jsonl", is_encoder_decoder).examples if part else ()
        )
    return Prepared(byte_tokenizer(), *parts)


class Run:
    """One call of `train` on a freshly started model, and what is there after it."""

    def __init__(self, recipe, stop_after=None, data=None, told=None):
        self.folder = RunFolder(Path(recipe.output_dir))
        self.folder.path.mkdir(parents=True, exist_ok=True)
        base = BaseModel.of(recipe).load()
        data = (data or prepared(recipe)).data_for(base)
        self.model = start(base, recipe, data.micro_batches(recipe, 0, 4)).model
        self.before = state(self.model)
        interruption = Interruption(lambda: None)
        self.told = told or StopsAfter(interruption, stop_after)
        self.end = train(
            self.model,
            byte_tokenizer(),
            data,
            training_arguments(recipe),
            self.folder,
            interruption,
            self.told,
        )

    @property
    def stopped(self):
        """The step that it stopped at, or None if it went to its end."""
        return self.end.global_step if self.end.global_step < self.end.max_steps else None

    @property
    def log(self):
        return [{key: value for key, value in line.items() if key not in OF_THE_CLOCK} for line in self.folder.log()]


class StopsAfter(Told):
    """Asks for an interruption, as the signal's handler does, when a step is told as done."""

    def __init__(self, interruption, step):
        super().__init__()
        self._interruption, self._step = interruption, step

    def advance(self, work, note):
        super().advance(work, note)
        if note.startswith(f"training: step {self._step} of"):
            self._interruption.handle(2, None)


def state(model):
    if hasattr(model, "peft_config"):
        return adapter_state(model)
    return {name: value.clone() for name, value in model.state_dict().items()}


# --- one run


def test_log_has_a_line_a_step_with_what_was_measured(whole):
    run = whole()

    log = run.folder.log()
    assert run.stopped is None
    assert [line["step"] for line in log] == list(range(1, 9))
    assert all({"loss", "learning_rate", "tokens", "seconds", "peak_memory", "epoch"} <= set(line) for line in log)
    seconds = [line["seconds"] for line in log]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] < 60
    assert all(line["peak_memory"] > 50e6 for line in log)  # bytes: torch alone is larger
    assert "train_runtime" not in {key for line in log for key in line}
    assert run.told.begun == [("training", 8, 0)]
    assert run.told.work == [1] * 8
    assert_moved(state(run.model), run.before)


def test_tokens_are_those_seen_so_far_without_padding(asked, whole):
    lengths = [len(each.input_ids) for each in prepared(asked()).train]
    assert len(set(lengths)) > 2

    tokens = [line["tokens"] for line in whole().log]
    assert (tokens[3], tokens[7]) == (sum(lengths), 2 * sum(lengths))
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize(("rows_at_once", "accumulated"), [(16, 1), (4, 4)])
@pytest.mark.parametrize("method", ["lora", "lora_ga", "full"])
def test_training_is_adamw_on_the_mean_over_target_tokens_as_a_plain_loop_does_it(
    asked, method, rows_at_once, accumulated
):
    # every step sees all rows, so that their order does not matter
    own = {} if method == "full" else {"dropout": 0.0}
    recipe = asked(
        method=method,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=accumulated,
        num_train_epochs=6.0,
        warmup_steps=2.0,
        weight_decay=0.1,
        save_steps=100.0,
        learning_rate=0.003,
        **own,
    )
    run = Run(recipe)

    data = prepared(recipe)
    base = BaseModel.of(recipe).load()
    reference = start(base, recipe, data.data_for(base).micro_batches(recipe, 0, 4)).model.eval()
    ids, labels = (
        torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(getattr(each, name)) for each in data.train], batch_first=True, padding_value=filler
        )
        for name, filler in (("input_ids", 257), ("labels", -100))
    )
    lengths = torch.tensor([len(each.input_ids) for each in data.train])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    weights = [weight for weight in reference.parameters() if weight.requires_grad]
    decayed = [weight for weight in weights if weight.ndim > 1]  # no decay of norms
    kept = [weight for weight in weights if weight.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}])
    losses, rates = [], []
    for step in range(6):
        rate = 0.003 * (step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 4)))
        logits = reference(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(dim=-1)
        targets = labels[:, 1:]
        likely = logits.gather(2, targets.clamp(min=0)[..., None])[..., 0]
        loss = -likely[targets != -100].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
        rates.append(rate)

    assert [line["loss"] for line in run.log] == pytest.approx(losses, rel=2e-4)
    assert [line["learning_rate"] for line in run.log] == pytest.approx(rates, rel=1e-6, abs=1e-12)
    assert losses[-1] < losses[0] - 0.01


def test_the_same_run_twice_is_the_same_bit_for_bit(asked, whole):
    whole()
    torch.manual_seed(2)

    again = Run(asked())

    assert again.log == whole().log
    assert_same(state(again.model), state(whole().model))


def test_order_of_the_rows_is_that_of_data_seed(asked):
    logs = [Run(asked(f"run-{seed}", data_seed=seed, dropout=0.0, max_steps=3)).log for seed in (0, 1)]

    assert [line["loss"] for line in logs[0]] != [line["loss"] for line in logs[1]]


def test_held_out_loss_is_logged_where_the_recipe_asks_for_it(asked):
    recipe = asked(held_out_rows=4, max_steps=4, trainer={"eval_strategy": "steps", "eval_steps": 2})

    run = Run(recipe, data=prepared(recipe, held_out=ROWS[16:20]))

    assert [(line["step"], "eval_loss" in line) for line in run.log if "loss" not in line] == [(2, True), (4, True)]
    assert [line["step"] for line in run.log if "loss" in line] == [1, 2, 3, 4]
    tokens = [line["tokens"] for line in run.log]
    assert tokens == sorted(tokens)


# --- stopping and going on


# in either epoch; no checkpoint is due at either step
@pytest.mark.parametrize(("method", "step"), [("lora", 2), ("lora_ga", 2), ("lora_ga", 5), ("full", 5)])
def test_an_interrupted_run_stops_with_a_checkpoint_and_ends_like_one_that_was_not(asked, whole, method, step):
    recipe = asked(method=method, dropout=dropout(method))

    first = Run(recipe, stop_after=step)

    assert first.stopped == step
    assert newest_complete_checkpoint(first.folder.path) == first.folder / f"checkpoint-{step}"
    assert first.log == whole(method).log[:step]

    again = Run(recipe)

    assert again.stopped is None
    assert again.told.begun == [("training", 8, step)]
    assert again.told.work == [1] * (8 - step)
    assert again.log == whole(method).log
    assert_same(state(again.model), state(whole(method).model))


class Killed(BaseException):
    pass


class KilledAfter(Told):
    def __init__(self, step):
        super().__init__()
        self._step = step

    def advance(self, work, note):
        if note.startswith(f"training: step {self._step} of"):
            raise Killed("now")


def test_a_killed_run_goes_on_from_its_newest_checkpoint_with_the_same_log(asked, whole):
    recipe = asked()
    with pytest.raises(Killed, match="now"):
        Run(recipe, told=KilledAfter(6))
    folder = RunFolder(Path(recipe.output_dir))
    assert [line["step"] for line in folder.log()] == [1, 2, 3, 4, 5]  # two more than the checkpoint has
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6})[:-3])

    again = Run(recipe)

    assert again.told.begun == [("training", 8, 3)]
    assert again.log == whole().log
    assert_same(state(again.model), state(whole().model))


def test_seconds_go_on_where_an_earlier_process_stopped(asked):
    first = Run(asked(), stop_after=3)
    log = first.folder.log()
    log[-1]["seconds"] = 5000.0
    (first.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))

    again = Run(asked())

    assert all(5000 < line["seconds"] < 5060 for line in again.folder.log()[3:])


def test_a_run_that_was_trained_to_its_end_does_no_more_step(asked, whole):
    shutil.copytree(whole().folder.path, asked().output_dir)

    again = Run(asked())

    assert again.stopped is None
    assert again.told.work == []
    assert again.log == whole().log
    assert_same(state(again.model), state(whole().model))


def test_an_interruption_at_the_last_step_is_a_run_that_is_done(asked, whole):
    run = Run(asked(), stop_after=8)

    assert run.stopped is None
    assert run.log == whole().log


def test_save_total_limit_keeps_the_newest_checkpoints(asked):
    run = Run(asked(save_steps=2.0, save_total_limit=2))

    assert sorted(path.name for path in run.folder.path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]


# --- micro-batches


def rows_of(batches):
    """Each batch as the set of its rows, without padding."""
    return [
        {tuple(ids[mask.bool()].tolist()) for ids, mask in zip(each["input_ids"], each["attention_mask"], strict=True)}
        for each in batches
    ]


@pytest.fixture
def draw(recipe, model):
    def make(first, count, **keys):
        asked = recipe(**{"per_device_train_batch_size": 3, **keys})
        return rows_of(prepared(asked, ROWS[:15]).data_for(model).micro_batches(asked, first, count))

    return make


def test_micro_batches_are_drawn_by_the_seed(draw):
    assert draw(0, 5) == draw(0, 5)
    assert draw(0, 5) != draw(0, 5, seed=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw(0, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_micro_batches_pass_over_the_first_ones_and_together_are_all_rows(draw):
    one, other = draw(0, 2), draw(2, 3)

    assert one + other == draw(0, 5)
    assert [len(batch) for batch in one + other] == [3] * 5
    assert len(set().union(*one, *other)) == 15
    assert not set().union(*one) & set().union(*other)


def test_a_short_set_begins_anew(draw):
    assert draw(5, 5) == draw(0, 5)
    wrapping = draw(0, 3, per_device_train_batch_size=10)
    assert [len(batch) for batch in wrapping] == [10, 10, 10]
    assert wrapping[0] | wrapping[1] == wrapping[0] | wrapping[1] | wrapping[2]
    assert len(wrapping[0] | wrapping[1]) == 15


@pytest.mark.parametrize("keys", [{}, {"trainer": {"load_best_model_at_end": True, "eval_strategy": "steps"}}])
def test_a_run_that_was_killed_after_its_last_checkpoint_takes_no_further_step(asked, keys):
    """Within an epoch: 5 steps of 2 x 2 rows, of 16."""
    keys = {"max_steps": 5, "num_train_epochs": 1.0, "save_steps": 1.0, "save_total_limit": None, **keys}
    if "trainer" in keys:
        keys = {**keys, "trainer": {**keys["trainer"], "eval_steps": 1, "metric_for_best_model": "loss"}}
    recipe = asked(learning_rate=1.0 if "trainer" in keys else 0.01, **keys)
    data = prepared(recipe, held_out=ROWS[16:])
    first = Run(recipe, data=data)
    best = first.end.best_model_checkpoint
    assert (best is None) == ("trainer" not in keys)

    again = Run(recipe, data=data)

    assert again.end.global_step == 5
    assert_same(state(again.model), state(first.model))
    assert again.log == first.log


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("folder", ["tiny_folder", "tiny_t5_folder"])
def test_a_step_of_several_micro_batches_is_as_long_as_a_step_of_one(asked, request, folder, method):
    keys = {"model": str(request.getfixturevalue(folder)), "method": method, "max_steps": 1, "num_train_epochs": 1.0}
    keys |= {"dropout": 0.0}
    rows = TRAINED[:8]
    sizes = {"one": (8, 1), "four": (2, 4)}
    logs = {}
    for name, (size, steps) in sizes.items():
        recipe = asked(name, per_device_train_batch_size=size, gradient_accumulation_steps=steps, **keys)
        is_t5 = folder == "tiny_t5_folder"
        logs[name] = Run(recipe, data=prepared(recipe, rows, is_encoder_decoder=is_t5)).log[0]
    assert logs["four"]["loss"] == pytest.approx(logs["one"]["loss"], rel=0.15)
    assert logs["four"]["grad_norm"] == pytest.approx(logs["one"]["grad_norm"], rel=0.5)
