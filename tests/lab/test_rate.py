import json
import math
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from loraga.lab.rate import RateAfterWarmUp, first_rate, lower_peak, peak_rate
from loraga.lab.run_folder import RATE, RATE_PICTURE, RunFolder

from .conftest import tiny_model

STEPS, WARM_UP = 8, 2


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    # letters of a few, so that there is something to learn
    ids = torch.randint(60, 68, (count, 10), generator=generator)
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def batches(seed=1, count=4, size=4):
    made = rows(count * size, seed)
    return [
        {name: torch.stack([row[name] for row in made[at : at + size]]) for name in made[0]}
        for at in range(0, len(made), size)
    ]


def adapted(seed=0):
    model = tiny_model(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


class Rates(TrainerCallback):
    """Keeps the rate that each step is done with."""

    def __init__(self, stop_after=None):
        self.used, self.scheduled, self.stop_after = [], [], stop_after

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.used.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **kwargs):
        self.scheduled.append(kwargs["lr_scheduler"].get_last_lr()[0])
        control.should_training_stop |= state.global_step == self.stop_after


def train(folder, peak, callbacks, resume=None, warm_up=WARM_UP, schedule="cosine"):
    arguments = TrainingArguments(
        output_dir=str(folder.path),
        learning_rate=peak,
        lr_scheduler_type=schedule,
        warmup_steps=warm_up,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        save_steps=1,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=adapted(), args=arguments, train_dataset=rows(32, seed=3), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def schedule_of(peak, lowered):
    """Linear warm-up, then half a cosine: the reference, in plain numbers."""
    after = [0.5 * (1 + math.cos(math.pi * step / (STEPS - WARM_UP))) for step in range(STEPS - WARM_UP)]
    return [peak * step / WARM_UP for step in range(WARM_UP)] + [lowered * part for part in after]


def second(folder, told=None, made=batches, seed=0):
    return RateAfterWarmUp(folder, partial(made, 2), seed, (told if told is not None else []).append)


# The first measurement


def test_the_first_rate_is_kept_with_its_curve_and_measured_once(folder):
    model = adapted()

    rate = first_rate(folder, model, batches(), seed=0)

    kept = json.loads((folder / RATE).read_text())
    assert kept["value"] == rate > 0
    assert (kept["num_batches"], len(kept["curve"]) > 3) == (4, True)
    assert (folder / RATE_PICTURE).read_bytes().startswith(b"\x89PNG")
    assert first_rate(folder, None, [], seed=1) == rate  # nothing to measure with is needed any more
    assert peak_rate(folder) == rate


def test_measuring_leaves_the_model_as_it_was(folder):
    model = adapted()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    first_rate(folder, model, batches(), seed=0)

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("again", "peak"), [(0.25, 0.5), (2.0, 1.0), (1.0, 1.0)])
def test_the_peak_that_counted_is_the_geometric_mean_or_the_first_where_the_second_is_higher(folder, again, peak):
    folder.write_json(RATE, {"value": 1.0, "after_warm_up": {"step": 2, "value": again}})

    assert peak_rate(folder) == peak


# The second one


def test_a_lower_rate_after_the_warm_up_lowers_what_the_schedule_gives_from_then_on(folder):
    folder.write_json(RATE, {"value": 5.0})  # far above what can be measured
    rates, told = Rates(), []

    trainer = train(folder, 5.0, [second(folder, told), rates])

    kept = folder.read_json(RATE)
    again = kept["after_warm_up"]["value"]
    lowered = math.sqrt(5.0 * again)
    assert (kept["value"], kept["after_warm_up"]["step"]) == (5.0, WARM_UP)
    assert 0 < again < 5.0
    assert peak_rate(folder) == lowered
    assert rates.used == pytest.approx(schedule_of(5.0, lowered), rel=1e-12)
    assert rates.scheduled == pytest.approx([*schedule_of(5.0, lowered)[1:], 0.0], rel=1e-12, abs=1e-15)
    assert [line["learning_rate"] for line in trainer.state.log_history if "loss" in line] == pytest.approx(rates.used)
    assert told == [f"learning rate: {again:.2g} after the warm-up, so the peak is their geometric mean, {lowered:.2g}"]


def test_a_higher_rate_after_the_warm_up_raises_nothing(folder):
    folder.write_json(RATE, {"value": 1e-6})
    rates, told = Rates(), []

    train(folder, 1e-6, [second(folder, told), rates])

    assert folder.read_json(RATE)["after_warm_up"]["value"] > 1e-6
    assert rates.used == pytest.approx(schedule_of(1e-6, 1e-6), rel=1e-12)
    assert peak_rate(folder) == 1e-6
    assert told[0].endswith("so the peak stays 1e-06")


def test_measuring_in_the_middle_of_training_changes_no_weight(folder, tmp_path):
    (tmp_path / "plain").mkdir()
    folder.write_json(RATE, {"value": 1e-6})

    measured = train(folder, 1e-6, [second(folder)]).model
    plain = train(RunFolder(tmp_path / "plain"), 1e-6, []).model

    for one, other in zip(measured.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stop", [1, WARM_UP, 5])
def test_a_lowered_schedule_goes_on_after_a_checkpoint_as_if_nothing_had_happened(folder, tmp_path, stop):
    (tmp_path / "whole").mkdir()
    whole_folder = RunFolder(tmp_path / "whole")
    whole, before, after = Rates(), Rates(stop_after=stop), Rates()
    for each in (folder, whole_folder):
        each.write_json(RATE, {"value": 5.0})
    uninterrupted = train(whole_folder, 5.0, [second(whole_folder), whole])

    train(folder, 5.0, [second(folder), before])
    resumed = train(folder, 5.0, [second(folder), after], resume=str(folder / f"checkpoint-{stop}"))

    assert (len(before.used), len(after.used)) == (stop, STEPS - stop)
    assert before.used + after.used == whole.used
    assert before.scheduled + after.scheduled == whole.scheduled
    for one, other in zip(resumed.model.parameters(), uninterrupted.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_is_not_given_up_for_want_of_a_second_measurement(folder):
    folder.write_json(RATE, {"value": 1e-4})
    rates, told = Rates(), []

    def contrary(seed):  # what one half teaches is wrong in the other
        ids = batches(seed, count=1)[0]["input_ids"]
        return [{"input_ids": ids, "labels": torch.full_like(ids, 200 + half)} for half in (0, 1)]

    train(folder, 1e-4, [second(folder, told, contrary), rates])

    assert "after_warm_up" not in folder.read_json(RATE)
    assert rates.used == pytest.approx(schedule_of(1e-4, 1e-4), rel=1e-12)
    assert len(told) == 1
    assert told[0].startswith("learning rate: the peak stays 0.0001, no second measurement (")


def test_without_a_warm_up_nothing_is_measured_again(folder):
    folder.write_json(RATE, {"value": 5.0})

    train(folder, 1e-4, [second(folder)], warm_up=0)

    assert folder.read_json(RATE) == {"value": 5.0}


# Lowering


def test_lowering_multiplies_every_group_and_the_schedule_by_the_factor():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 0.1}])
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    scheduler.step()

    lower_peak(optimizer, scheduler, 0.25)

    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.0125]
    assert scheduler.get_last_lr() == [0.125, 0.0125]
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25 / 3, 0.025 / 3])


def test_a_scheduler_that_reads_the_optimizers_rate_needs_no_base_rates():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    scheduler.step(1.0)

    lower_peak(optimizer, scheduler, 0.25)
    scheduler.step(2.0)

    assert optimizer.param_groups[0]["lr"] == 0.125
