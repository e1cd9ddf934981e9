import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState

from loraga.lab.adalora import STATE, AdaLoraSchedule, save_as_plain_lora
from loraga.lab.arguments import training_arguments
from loraga.lab.errors import LabError, RecipeError
from loraga.lab.run_folder import METRICS, TRAINED, folder_of
from tests.integration.common import eval_logits

from .conftest import Told
from .runs import carried_out, data_of, killed, started, trained

LAYERS, FIRST, LAST = 14, 6, 3
PROBE = {"input_ids": torch.arange(40, 72).reshape(2, 16)}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def asked(recipe, tmp_path):
    def make(**keys):
        method = {"method": "adalora", "rank": LAST, "init_r": FIRST, "alpha": 12, "tinit": 1.0, "tfinal": 2.0}
        training = {"learning_rate": 0.02, "warmup_steps": 0.0, "max_steps": 8, "save_steps": 2.0}
        size = {"per_device_train_batch_size": 4, "output_dir": str(tmp_path / "run")}
        return recipe(**{**method, **training, **size, **keys})

    return make


def triplets(model):
    """{layer: E, as a vector}."""
    return {name: value.detach().clone()[:, 0] for name, value in model.named_parameters() if "lora_E" in name}


class Ranks(TrainerCallback):
    """Keeps which triplets are not zero after each step."""

    def __init__(self):
        self.kept = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.kept.append({name: (E != 0).tolist() for name, E in triplets(model).items()})

    @property
    def totals(self):
        return [sum(sum(layer) for layer in kept.values()) for kept in self.kept]


def test_ranks_fall_to_the_target_by_the_cubic_schedule_and_stay_there(asked):
    recipe = asked(max_steps=12, tinit=2.0, tfinal=3.0, deltaT=2, save_steps=100.0)
    model, ranks = started(recipe).model, Ranks()

    trained(recipe, model, ranks)

    def budget(step):  # Eq. 12 of the paper, on the steps at which the ranks change
        if step <= 2 or (step < 9 and step % 2):
            return FIRST * LAYERS
        left = max(0.0, 1 - (step - 2) / (12 - 3 - 2))
        return int((FIRST - LAST) * LAYERS * left**3 + LAST * LAYERS)

    assert ranks.totals == [budget(step) for step in range(1, 13)]
    assert ranks.totals[0] == 84 > ranks.totals[3] > ranks.totals[-1] == 42
    assert ranks.kept[8] == ranks.kept[9] == ranks.kept[10] == ranks.kept[11]
    assert len({sum(layer) for layer in ranks.kept[-1].values()}) > 1  # some layers keep more than others
    config = model.peft_config["default"]
    assert (config.tinit, config.tfinal, config.deltaT, config.total_step) == (2, 3, 2, 12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing stops."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.mark.parametrize(
    ("step", "damage", "goes_on"),
    [(5, None, 4), (7, None, 6), (5, "missing", 2), (5, "torn", 2)],
    ids=["while they fall", "after they fell", "state missing", "state torn"],
)
def test_a_killed_run_goes_on_to_the_same_ranks_and_weights(asked, whole, tmp_path, step, damage, goes_on):
    if not whole.exists():
        carried_out(asked(output_dir=str(whole)))
    recipe, told = asked(), Told()
    killed(recipe, step)
    state = tmp_path / "run" / f"checkpoint-{step - 1}" / STATE
    if damage == "missing":  # killed between Trainer's last file and this one
        state.unlink()
    if damage == "torn":
        state.write_bytes(state.read_bytes()[:-1])

    carried_out(recipe, told)

    assert told.begun[0] == ("training", 8, goes_on)
    files = [folder / "adapter" / WEIGHTS for folder in (whole, tmp_path / "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sum(len(value) for key, value in load_file(files[0]).items() if "lora_A" in key) == LAST * LAYERS


def test_the_result_is_a_plain_lora_of_the_ranks_that_are_left(asked, tiny_folder, tmp_path):
    model = started(asked()).model
    with torch.no_grad():
        for number, layer in enumerate(each for each in model.modules() if hasattr(each, "lora_E")):
            layer.lora_E["default"].normal_()
            layer.lora_E["default"][number % (FIRST + 1) :] = 0.0  # from none to all of them

    save_as_plain_lora(model, tmp_path / "adapter")

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), str(tmp_path / "adapter"))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    ranks = [layer.r["default"] for layer in loaded.modules() if hasattr(layer, "lora_A")]
    assert ranks == [1, 1, 2, 3, 4, 5, 6] * 2  # LoRA has no rank 0
    expected = eval_logits(model, PROBE)
    torch.testing.assert_close(eval_logits(loaded, PROBE), expected, rtol=0, atol=1e-5)
    assert (expected - eval_logits(AutoModelForCausalLM.from_pretrained(tiny_folder), PROBE)).abs().max() > 0.01


def test_what_is_evaluated_in_training_is_the_loss_alone(asked):
    recipe = asked(held_out_rows=4, max_steps=4, trainer={"eval_strategy": "steps", "eval_steps": 4})

    metrics = carried_out(recipe)

    (evaluated,) = [line["eval_loss"] for line in folder_of(recipe).log() if "eval_loss" in line]
    assert evaluated == pytest.approx(metrics["held_out"]["loss"], rel=1e-5)  # of the saved adapter


@pytest.mark.parametrize(("summed", "share"), [(False, 1), (True, 4)])
def test_the_training_loss_has_the_orthogonal_regularisation_once_a_step(asked, summed, share):
    recipe = asked(gradient_accumulation_steps=4)
    model, schedule = started(recipe).model, AdaLoraSchedule(recipe)
    batch = data_of(recipe, model).micro_batches(recipe, 0, 1)[0]
    if summed:
        batch["num_items_in_batch"] = torch.tensor(int((batch["labels"] != -100).sum()))
    begun = {"model": model, "control": TrainerControl()}
    schedule.on_train_begin(training_arguments(recipe), TrainerState(max_steps=8), **begun)

    with torch.no_grad():
        evaluated, trained = (model.train(mode)(**batch).loss for mode in (False, True))
    schedule.on_train_end(training_arguments(recipe), TrainerState(max_steps=8), **begun)

    products = []
    for name, value in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            rows = value.detach().double() if "lora_A" in name else value.detach().double().T
            products.append(float(torch.linalg.matrix_norm(rows @ rows.T - torch.eye(FIRST))))
    assert float(trained - evaluated) == pytest.approx(0.5 * sum(products) / len(products) / share, rel=1e-4)
    assert float(evaluated) == pytest.approx(float(model.unload()(**batch).loss), rel=1e-6)


def test_a_schedule_in_which_no_step_is_left_for_falling_is_refused_when_the_steps_are_known(asked):
    recipe = asked(max_steps=None, tinit=4.0, tfinal=0.5)

    with pytest.raises(RecipeError, match=r"tinit \(4\) and tfinal \(3\) leave none of 6 steps for the ranks to fall"):
        carried_out(recipe)


def test_a_layer_without_a_gradient_cannot_be_weighed(asked):
    recipe = asked()
    model = started(recipe).model

    with pytest.raises(LabError, match=r"layer model\.layers\.0\.\S+_proj gets no gradient, which AdaLoRA needs"):
        AdaLoraSchedule(recipe).on_optimizer_step(None, TrainerState(), TrainerControl(), model=model)


def test_a_run_killed_before_its_result_is_written_goes_on_from_its_last_checkpoint(asked, tmp_path):
    recipe = asked()
    carried_out(recipe)
    expected = (tmp_path / "run" / "adapter" / WEIGHTS).read_bytes()
    shutil.rmtree(tmp_path / "run" / "adapter")
    for name in (TRAINED, METRICS):
        (tmp_path / "run" / name).unlink()

    carried_out(recipe)

    assert (tmp_path / "run" / "adapter" / WEIGHTS).read_bytes() == expected
