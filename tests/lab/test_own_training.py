import pytest
import torch
from transformers import TrainerCallback

from loraga.lab.methods import METHODS
from loraga.lab.own_training import AS_USUAL, OWN, own_training
from loraga.lab.rate import first_rate, peak_rate
from loraga.lab.run_folder import RATE, RunFolder, folder_of

from .runs import data_of, started, trained

RATIO = 8.0


@pytest.fixture
def asked(recipe, tmp_path):
    def make(method="lora_plus", **keys):
        own = {"loraplus_lr_ratio": RATIO} if method == "lora_plus" else {}
        steps = {"learning_rate": 0.004, "max_steps": 5, "warmup_steps": 2.0, "output_dir": str(tmp_path / "run")}
        return recipe(**{**own, **steps, "method": method, **keys})

    return make


class Groups(TrainerCallback):
    """Keeps each parameter's rate at each step, and how far it moved in the first that moves."""

    def __init__(self):
        self.rates, self.decay = [], {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        names = {id(weight): name for name, weight in kwargs["model"].named_parameters()}
        groups = kwargs["optimizer"].param_groups
        self.rates.append({names[id(weight)]: group["lr"] for group in groups for weight in group["params"]})
        self.decay = {group["weight_decay"] for group in groups if group["params"]}


def test_every_method_names_what_it_does_in_training():
    assert {method.training for method in METHODS.values()} == set(OWN)


def test_most_methods_are_trained_as_trainer_trains(asked):
    assert own_training(asked("lora")) == own_training(asked("full")) == AS_USUAL


def test_lora_plus_trains_b_at_the_ratio_times_the_rate_of_a_by_the_same_schedule(asked):
    recipe = asked(weight_decay=0.1)
    model, groups = started(recipe).model, Groups()
    expected = {name for name, weight in model.named_parameters() if weight.requires_grad}

    trained(recipe, model, groups)

    assert len(groups.rates) == 5
    for rates in groups.rates:
        assert rates.keys() == expected
        of_a, of_b = ({rate for name, rate in rates.items() if f"lora_{factor}" in name} for factor in "AB")
        assert (len(of_a), len(of_b)) == (1, 1)
        assert of_b.pop() == pytest.approx(RATIO * max(of_a), rel=1e-12)
    logged = [line["learning_rate"] for line in folder_of(recipe).training_log()]
    assert logged == pytest.approx([next(iter(rates.values())) for rates in groups.rates])
    assert max(logged) == pytest.approx(0.004)
    assert groups.decay == {0.1}


def test_the_suggested_rate_of_lora_plus_is_that_of_a(asked, tmp_path):
    found = {}
    for method in ("lora", "lora_plus"):  # the same adapter, of which B alone moves in the first step
        recipe = asked(method)
        model = started(recipe).model
        batches = data_of(recipe, model).micro_batches(recipe, 0, 2)
        folder = RunFolder(tmp_path / method)
        folder.path.mkdir()
        found[method] = first_rate(folder, model, batches, 0, own_training(recipe))
        assert peak_rate(folder) == found[method]
        kept = folder.read_json(RATE)
        assert min(at for at, _ in kept["curve"]) < kept["value"] < max(at for at, _ in kept["curve"])
        assert kept["low"] <= kept["value"] <= kept["high"]
        assert all(weight.requires_grad for name, weight in model.named_parameters() if "lora_" in name)

    assert found["lora_plus"] == pytest.approx(found["lora"] / RATIO, rel=1e-12)


def test_a_rate_is_measured_along_b_alone_after_the_warm_up_too(asked):
    recipe = asked()
    model = started(recipe).model
    own = own_training(recipe)

    def trainable():
        return {name.split(".")[-3] for name, weight in model.named_parameters() if weight.requires_grad}

    with pytest.raises(ValueError, match="in the middle"), own.measuring(model):
        assert trainable() == {"lora_B"}
        raise ValueError("in the middle")

    assert trainable() == {"lora_A", "lora_B"}
    assert torch.is_grad_enabled()
