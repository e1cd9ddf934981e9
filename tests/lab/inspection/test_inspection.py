import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch import nn

from loraga import GradientError
from loraga.lab.base_model import BaseModel
from loraga.lab.errors import DataError, LabError, SettingsError
from loraga.lab.inspection.inspection import (
    Layer,
    heat_map_of,
    inspect_model,
    inspect_recipe,
    median_coverage,
    rank_in_all,
    rank_in_half,
)
from loraga.lab.inspection.spectrum import Spectrum
from loraga.lab.preparation import prepare
from tests.lab.conftest import tiny_model
from tests.lab.test_initial import plain_batch
from tests.models import autograd_gradients
from tests.planted import planted

from .test_full_gradient import TERMS, batches

RANK = 3


def quiet():
    return Console(quiet=True)


@pytest.fixture(scope="module")
def expected():
    """{layer: float64 gradient by autograd}, without the output embeddings."""
    found = autograd_gradients(tiny_model(), batches(), TERMS)
    return {layer: gradient.double() for layer, gradient in found.items() if layer != "lm_head"}


def share(matrix, rank):
    """The coverage, by the formula."""
    squares = torch.linalg.svdvals(matrix) ** 2
    return float(squares[: 2 * rank].sum() / squares.sum())


def test_the_exact_spectrum_is_that_of_the_autograd_gradient(expected, told):
    found = inspect_model(tiny_model(), batches(), RANK, told)

    assert [layer.name for layer in found.layers] == list(expected)
    assert found.loss_terms == sum(TERMS)
    for layer in found.layers:
        values = torch.linalg.svdvals(expected[layer.name])
        assert layer.spectrum.values == pytest.approx(values.tolist(), rel=1e-4, abs=1e-6 * float(values[0]))
        assert layer.coverage(RANK) == pytest.approx(share(expected[layer.name], RANK), rel=1e-5)
        assert layer.spectrum.squares == pytest.approx(float((expected[layer.name] ** 2).sum()), rel=1e-5)
    lowest = min(expected, key=lambda name: share(expected[name], RANK))
    assert found.worst.name == lowest
    shares = sorted(share(matrix, RANK) for matrix in expected.values())
    assert found.median_coverage(RANK) == pytest.approx((shares[6] + shares[7]) / 2, rel=1e-5)
    assert (found.without_gradient, found.largest_known_rank) == ((), None)


def test_the_streaming_coverage_is_near_and_ends_at_twice_the_rank(expected, told):
    found = inspect_model(tiny_model(), batches(), RANK, told, estimator="streaming")

    assert {len(layer.spectrum.values) for layer in found.layers} == {4 * RANK}
    assert found.largest_known_rank == 2 * RANK
    for layer in found.layers:
        for rank in (1, RANK, 2 * RANK):
            assert layer.coverage(rank) == pytest.approx(share(expected[layer.name], rank), abs=0.02)
        assert math.isnan(layer.coverage(2 * RANK + 1))
    assert math.isnan(found.median_coverage(2 * RANK + 1))
    assert found.heat_map.part_of_rank == 4 * RANK
    assert told.work == [1, 1]


def test_the_streaming_spectrum_is_whole_where_the_factors_are(expected, told):
    found = inspect_model(tiny_model(), batches(), 8, told, estimator="streaming")

    assert found.is_whole
    assert found.heat_map.part_of_rank is None
    for layer in found.layers:
        assert layer.spectrum.rank_for(0.9) == next(r for r in range(1, 17) if share(expected[layer.name], r) >= 0.9)


def test_the_layer_with_the_largest_gradient_is_drawn_or_the_one_asked_for(expected, told):
    largest = max(expected, key=lambda name: float(expected[name].norm()))
    other = next(name for name in expected if name != largest)

    unasked = inspect_model(tiny_model(), batches(), RANK, told).heat_map
    asked = inspect_model(tiny_model(), batches(), RANK, told, layer=other).heat_map

    for found, name in ((unasked, largest), (asked, other)):
        assert (found.layer, found.side, found.shape) == (name, 1, tuple(expected[name].shape))
        torch.testing.assert_close(found.means.double(), expected[name].abs(), rtol=1e-4, atol=1e-7)


def test_a_planted_gradient_has_its_coverage(told):
    """A linear model whose loss is <W, G>: its gradient is G, one term."""
    gradient = planted(10, 8, power=1.5)

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 10, bias=False)

        def forward(self, x, labels):
            return {"loss": (self.layer(x) * labels).sum()}

    inputs = {"x": gradient.Vh.float(), "labels": (gradient.U * gradient.S).T.float()}
    found = inspect_model(Linear(), [inputs], 2, told)

    assert found.layers[0].coverage(2) == pytest.approx(float((gradient.S[:4] ** 2).sum() / (gradient.S**2).sum()))


def test_progress_counts_the_work_of_the_decompositions(told):
    inspect_model(tiny_model(), batches(), RANK, told)

    square, wide = 32**3, 48 * 32**2
    assert told.begun == [("gradient", 2, 0.0), ("singular values", 2 * (4 * square + 3 * wide), 0.0)]
    assert told.work == [1, 1, *([square] * 4 + [wide] * 3) * 2]


def test_an_unknown_layer_is_refused_with_the_nearest(told):
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))

    with pytest.raises(
        SettingsError, match=r"no layer model\.layers\.1\.q_proj .*mean model\.layers\.1\.self_attn\.q_pr"
    ):
        inspect_model(model, batches(), RANK, told, layer="model.layers.1.q_proj")
    with pytest.raises(
        SettingsError, match=r"no layer q_proj with an adapter; did you mean model\.layers\.0\.self_attn\.q"
    ):
        inspect_model(model, batches(), RANK, told, layer="q_proj")
    with pytest.raises(SettingsError, match=r"no layer x with an adapter; the layers are called like model\.layers\.0"):
        inspect_model(model, batches(), RANK, told, layer="x")

    assert told.begun == []


@pytest.mark.parametrize("estimator", ["exact", "streaming"])
def test_a_layer_without_a_gradient_is_told_and_cannot_be_drawn(told, estimator):
    model = tiny_model()
    model.unused = nn.Linear(4, 3)

    found = inspect_model(model, batches(), RANK, told, estimator=estimator)

    assert found.without_gradient == ("unused",)
    assert len(found.layers) == 14
    with pytest.raises(SettingsError, match=r"layer unused has no gradient: .*; model\.layers\.\d\..* has the largest"):
        inspect_model(model, batches(), RANK, told, layer="unused", estimator=estimator)


def test_a_model_none_of_whose_layers_the_loss_depends_on_is_refused(told):
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    for block in model.base_model.model.model.layers:
        nn.init.zeros_(block.self_attn.o_proj.weight)

    with pytest.raises(LabError, match="every layer's gradient is zero"):
        inspect_model(model, batches(), RANK, told)


def test_a_model_without_the_layers_in_its_loss_is_refused(told):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.layer = nn.Linear(3, 3)

        def forward(self, x, labels):
            return {"loss": (x * labels).sum() * self.scale}

    inputs = {"x": torch.ones(2, 3), "labels": torch.ones(2, 3)}
    with pytest.raises(GradientError, match="does not depend on any of the"):
        inspect_model(Aside(), [inputs], RANK, told)


def test_a_recipe_is_inspected_on_the_micro_batches_that_its_start_would_see(recipe, told):
    asked = recipe(gradient_batches=3, per_device_train_batch_size=2, target_modules=["q_proj", "down_proj"])

    found = inspect_recipe(asked, None, "exact", quiet(), told)

    data = prepare(asked, quiet()).data_for(BaseModel.of(asked).load())
    plain = [plain_batch(batch) for batch in data.micro_batches(asked, 0, 3)]
    terms = [float((batch["labels"] != -100).sum()) for batch in plain]
    gradients = autograd_gradients(BaseModel.of(asked).load(), plain, terms)
    assert {layer.kind for layer in found.layers} == {"q_proj", "down_proj"}
    assert (found.micro_batches, found.loss_terms, found.rank) == (3, sum(terms), asked.rank)
    for layer in found.layers:
        assert layer.coverage(2) == pytest.approx(share(gradients[layer.name].double(), 2), rel=1e-4)


def test_rows_without_a_target_are_refused_before_the_model_is_loaded(recipe, told, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "target": ""}) + "\n")

    with pytest.raises(DataError, match=r"row 1 .*target"):
        inspect_recipe(recipe(data=str(tmp_path / "rows.jsonl")), None, "exact", quiet(), told)

    assert told.begun == []


def equal_values(count, side=None):
    """A layer with so many equal singular values, which are all it has unless its smaller side is given."""
    return Layer("layer", "kind", 0, Spectrum((side or count, 9), (1.0,) * count, float(count)))


def test_ranks_in_half_and_in_all_layers_are_counted_over_layers():
    layers = [equal_values(count) for count in (1, 3, 5, 7)]  # 90 % takes all values: ranks 1, 2, 3 and 4

    assert (rank_in_half(layers, 0.9), rank_in_all(layers, 0.9)) == (2, 4)
    assert rank_in_half(layers[:3], 0.9) == 2
    assert median_coverage(layers, 1) == pytest.approx((2 / 3 + 2 / 5) / 2)
    partly = [*layers, equal_values(3, side=9)]  # rank 2 needs a fourth value, which is not known
    assert (rank_in_half(partly, 0.9), rank_in_all(partly, 0.9)) == (3, None)


def test_a_heat_map_holds_the_means_of_square_blocks_and_of_what_is_left_at_the_edges():
    gradient = torch.randn(330, 500, generator=torch.Generator().manual_seed(0))

    found = heat_map_of("layer", gradient)

    assert (found.side, found.means.shape) == (2, (165, 250))
    assert float(found.means[3, 4]) == pytest.approx(float(gradient[6:8, 8:10].abs().mean()))
    odd = heat_map_of("layer", gradient[:, :499]).means
    assert float(odd[0, -1]) == pytest.approx(float(gradient[:2, 498].abs().mean()))
