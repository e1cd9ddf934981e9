"""The start read off two bases, and bases that no start explains."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from loraga.changed_base import require_start_of_changed_base, start_of_changed_base
from loraga.errors import SaveError
from loraga.saved_adapter import read_saved_adapter
from loraga.scheme import Factors
from tests.foreign import PEFT_WARNS, peft_lora_ga
from tests.models import batches, build, train
from tests.planted import planted

pytestmark = [pytest.mark.filterwarnings(warning) for warning in PEFT_WARNS]
DATA = batches("Llama")
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained adapter as read, the factors that it started from, and the base that it was trained on."""
    model = peft_lora_ga(DATA)
    layers = {name: module for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}
    starts = {
        name: Factors(
            A=module.lora_A["default"].weight.detach().clone(), B=module.lora_B["default"].weight.detach().clone()
        )
        for name, module in layers.items()
    }
    train(model, DATA)
    path = tmp_path_factory.mktemp("trained")
    model.save_pretrained(path)
    return read_saved_adapter(path), starts, model.unload()


@pytest.fixture
def changed(made):
    return copy.deepcopy(made[2])


def add(model, layer, matrix):
    """Adds a matrix of a fraction of the weight's norm."""
    weight = model.get_submodule(layer).weight.data
    weight.add_((matrix * (weight.norm() / matrix.norm())).to(weight))


def test_the_products_are_those_that_were_subtracted(made, changed):
    trained, expected, _ = made
    starts = start_of_changed_base(trained, build("Llama"), changed)
    assert starts.keys() == expected.keys()
    for name, start in starts.items():
        assert start.A.shape == trained.layers[name].A.shape
        product = expected[name].B.double() @ expected[name].A.double()
        weight = changed.get_submodule(name).weight
        error = float((start.B.double() @ start.A.double() - product).norm() * trained.layers[name].eta)
        assert error < 2e-7 * float(weight.norm())
    require_start_of_changed_base(trained, expected, build("Llama"), changed)


def test_reading_them_is_the_same_each_time_and_leaves_the_random_state(made, changed):
    state = torch.get_rng_state()
    one, other = (start_of_changed_base(made[0], build("Llama"), changed) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name].A, other[name].A) and torch.equal(one[name].B, other[name].B) for name in one)


def test_a_layer_that_was_not_changed_has_no_start(made, changed):
    changed.get_submodule(LAYER).weight.data.copy_(build("Llama").get_submodule(LAYER).weight)
    starts = start_of_changed_base(made[0], build("Llama"), changed)
    assert made[1].keys() - starts.keys() == {LAYER}


@pytest.mark.parametrize("part", [1.0, 0.01])
def test_a_difference_of_higher_rank_is_refused_with_what_is_left_over(made, changed, part):
    weight = changed.get_submodule(LAYER).weight
    extra = planted(*weight.shape, seed=3, power=0.5).matrix
    add(changed, LAYER, extra)
    weight.data.add_((part - 1) * (extra * (weight.norm() / extra.norm())).to(weight))
    with pytest.raises(SaveError, match=rf"layer {LAYER}: .* more than a product of rank 2, the adapter's: \d\.\d+ of"):
        start_of_changed_base(made[0], build("Llama"), changed)


def test_one_direction_more_than_the_rank_is_refused(made, changed):
    d_out, d_in = changed.get_submodule(LAYER).weight.shape
    add(changed, LAYER, planted(d_out, d_in, seed=4, values=torch.tensor([1.0])).matrix)
    with pytest.raises(SaveError, match=rf"layer {LAYER}: .* more than a product of rank 2"):
        start_of_changed_base(made[0], build("Llama"), changed)


def test_a_merged_model_is_refused(tmp_path):
    model = peft_lora_ga(DATA)
    train(model, DATA)
    model.save_pretrained(tmp_path)
    with pytest.raises(SaveError, match="has the adapter merged into it"):
        start_of_changed_base(read_saved_adapter(tmp_path), build("Llama"), model.merge_and_unload())


def test_another_model_is_refused(made):
    with pytest.raises(
        SaveError, match=r"model\.embed_tokens\.weight is not the same in the base and the changed base"
    ):
        start_of_changed_base(made[0], build("Llama"), build("Llama", seed=1))
    with pytest.raises(SaveError, match=r"the changed base has no model\.embed_tokens\.weight"):
        start_of_changed_base(made[0], build("Llama"), build("GPT-2"))


def test_the_original_base_is_no_changed_base(made):
    with pytest.raises(SaveError, match="has the weights of the base in every layer of the adapter"):
        start_of_changed_base(made[0], build("Llama"), build("Llama"))


def test_an_adapter_that_holds_its_start_needs_no_changed_base(made, changed, tmp_path):
    model = peft_lora_ga(DATA)
    model.save_pretrained(tmp_path / "start")
    train(model, DATA)
    model.save_pretrained(tmp_path / "it", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    with pytest.raises(SaveError, match="the adapter holds its start already"):
        start_of_changed_base(read_saved_adapter(tmp_path / "it"), build("Llama"), changed)


def test_weights_of_other_shapes_and_kinds_are_refused(made, changed):
    layer = changed.get_submodule(LAYER)
    layer.weight = torch.nn.Parameter(layer.weight[:, :-1].clone())
    with pytest.raises(SaveError, match=rf"layer {LAYER}: its weight is .* they do not belong together"):
        start_of_changed_base(made[0], build("Llama"), changed)
    changed.set_submodule(LAYER, torch.nn.Identity())
    with pytest.raises(SaveError, match=rf"layer {LAYER} of the changed base is a Identity, not a linear layer"):
        start_of_changed_base(made[0], build("Llama"), changed)


def test_weights_that_are_not_finite_are_refused(made, changed):
    changed.get_submodule(LAYER).weight.data[0, 0] = math.nan
    with pytest.raises(SaveError, match=rf"layer {LAYER}: its weight has entries that are not finite"):
        start_of_changed_base(made[0], build("Llama"), changed)


def test_half_precision_is_read_up_to_its_rounding_and_says_so(made, changed):
    trained, _, _ = made
    changed, base = changed.bfloat16(), build("Llama")
    with pytest.warns(
        UserWarning, match=r"rounding has added up to \de-0\d of a weight|rounding has added up to \d\.\d"
    ):
        starts = start_of_changed_base(trained, base, changed)
    for name, start in starts.items():
        weight, eta = changed.get_submodule(name).weight.detach().double(), trained.layers[name].eta
        left = base.get_submodule(name).weight.detach().double() - weight - eta * (start.B.double() @ start.A.double())
        assert 1e-4 < float(left.norm() / weight.norm()) < 2**-8


def test_a_start_of_another_run_is_not_that_of_the_changed_base(made, changed):
    trained, starts, _ = made
    other = {name: Factors(A=start.A, B=-start.B) for name, start in starts.items()}
    with pytest.raises(SaveError, match="is not the start in the initial adapter; they are of two runs"):
        require_start_of_changed_base(trained, other, build("Llama"), changed)
    with pytest.raises(SaveError, match="they are of two runs"):
        require_start_of_changed_base(trained, {}, build("Llama"), changed)
