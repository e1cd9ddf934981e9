"""Tests of `suggest_learning_rate`: planted lines with known minima, and what it leaves behind."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
import random
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

import loraga
from loraga import BatchError, GradientError, LoragaError, suggest_learning_rate
from loraga.learning_rate_line import Valley, first_valley, refined_minimum, walk

# ---- planted losses


class Point(nn.Module):
    """A model that is one float64 vector."""

    def __init__(self, start, dtype=torch.float64):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(start, dtype=dtype))


class Quadratic:
    """loss(theta, batch) = mean over the batch's rows c of (theta - c)^T H (theta - c) / 2, H with known spectrum."""

    def __init__(self, seed, size=6, rows=(1, 4, 2, 3), apart=0.3):
        generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
        self.curvature = basis @ torch.diag(torch.logspace(-1, 1, size, dtype=torch.float64)) @ basis.T
        self.start = torch.randn(size, generator=generator, dtype=torch.float64)
        goal = self.start + 0.05 * torch.randn(size, generator=generator, dtype=torch.float64)
        spread = 0.05 * apart
        self.batches = [
            {"rows": goal + spread * torch.randn(count, size, generator=generator, dtype=torch.float64)}
            for count in rows
        ]

    def __call__(self, model, batch):
        away = model.theta - batch["rows"]
        return ((away @ self.curvature) * away).sum(1).mean() / 2

    def closed_form(self):
        """(pooled, first half's, second half's) minimiser of the line, from the rows of each half laid together."""
        rows = [torch.cat([batch["rows"] for batch in self.batches[half::2]]) for half in (0, 1)]
        gradients = [self.curvature @ (self.start - part.mean(0)) for part in rows]
        steps = [-torch.sign(gradients[1]), -torch.sign(gradients[0])]  # a half moves along the OTHER half's
        falls = [-(gradient @ step).item() for gradient, step in zip(gradients, steps, strict=True)]
        bends = [(step @ self.curvature @ step).item() for step in steps]
        weights = [len(part) for part in rows]
        pooled = np.dot(weights, falls) / np.dot(weights, bends)
        return pooled, falls[0] / bends[0], falls[1] / bends[1]


def suggest(model, batches, **options):
    return suggest_learning_rate(model, batches, **{"progress": False, "num_batches": None, **options})


def on_a_line(loss):
    """One parameter at 0 and two equal batches, so that the line is the loss function itself."""
    return suggest(Point([0.0]), [{"x": torch.zeros(1)}] * 2, loss=lambda model, batch: loss(model.theta[0]))


@pytest.mark.parametrize("rows", [(1, 1), (5, 2), (1, 4, 2), (1, 4, 2, 3), (2, 1, 5, 1, 3, 1, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_of_a_quadratic_loss_the_rate_is_the_exact_minimiser_of_the_line(seed, rows):
    quadratic = Quadratic(seed, rows=rows)
    pooled, *halves = quadratic.closed_form()

    rate = suggest(Point(quadratic.start), quadratic.batches, loss=quadratic)

    assert rate.value == pytest.approx(pooled, rel=1e-6)
    assert rate.low == pytest.approx(min(pooled, *halves), rel=1e-6)
    assert rate.high == pytest.approx(max(pooled, *halves), rel=1e-6)


def test_the_curve_and_its_losses_are_those_of_steps_along_the_other_half():
    quadratic = Quadratic(3)
    rate = suggest(Point(quadratic.start), quadratic.batches, loss=quadratic)
    gradients = []
    for half in (0, 1):
        point = Point(quadratic.start)
        rows = torch.cat([batch["rows"] for batch in quadratic.batches[half::2]])
        quadratic(point, {"rows": rows}).backward()
        gradients.append(point.theta.grad)
    everything = torch.cat([batch["rows"] for batch in quadratic.batches])

    assert rate.loss_before == pytest.approx(quadratic(Point(quadratic.start), {"rows": everything}).item())
    assert rate.loss_terms == len(everything)
    for half, curve in enumerate(rate.halves):
        rows = torch.cat([batch["rows"] for batch in quadratic.batches[half::2]])
        for step, loss in curve:
            moved = Point(quadratic.start - step * gradients[1 - half].sign())
            assert loss == pytest.approx(quadratic(moved, {"rows": rows}).item(), rel=1e-9)
    assert dict(rate.curve)[rate.value] == rate.loss_at_value == min(loss for _, loss in rate.curve)


def test_a_quadratic_line_takes_about_ten_rates_in_factors_of_2():
    for seed in range(10):
        quadratic = Quadratic(seed)
        rate = suggest(Point(quadratic.start), quadratic.batches, loss=quadratic)
        grid = [step for step, _ in rate.curve if step != rate.value]
        assert len(rate.curve) <= 12
        assert all(b / a == pytest.approx(2) for a, b in itertools.pairwise(grid))


def test_weight_replaces_the_number_of_rows():
    quadratic = Quadratic(5, rows=(1, 1, 1, 1))
    weights = [5.0, 1.0, 1.0, 3.0]
    repeated = copy.copy(quadratic)
    repeated.batches = [
        {"rows": batch["rows"].repeat(int(weight), 1)} for batch, weight in zip(quadratic.batches, weights, strict=True)
    ]
    weighed = [{**batch, "weight": weight} for batch, weight in zip(quadratic.batches, weights, strict=True)]

    rate = suggest(Point(quadratic.start), weighed, loss=quadratic, weight=lambda batch: batch["weight"])

    assert rate.value == pytest.approx(repeated.closed_form()[0], rel=1e-6)
    assert rate.value != pytest.approx(quadratic.closed_form()[0], rel=1e-3)


def test_a_gradient_counts_each_batch_by_its_rows():
    # the first half's rows pull to 0.35 in the mean, the mean of its batches' means to the other side
    pulls = [[-1.0], [0.35], [0.5] * 9, [0.35]]
    batches = [{"rows": torch.tensor(pull, dtype=torch.float64)[:, None]} for pull in pulls]

    rate = suggest(Point([0.0]), batches, loss=lambda model, batch: ((model.theta - batch["rows"]) ** 2).mean())

    assert [rate.low, rate.value, rate.high] == pytest.approx([0.35] * 3, rel=1e-6)


def test_a_parameter_that_one_half_does_not_use_stays_along_that_halfs_step():
    model, seen = nn.ParameterDict({"shared": torch.zeros(1), "second": torch.zeros(1)}), []

    def loss(model, batch):
        in_second = bool(batch["second"])
        if in_second:
            seen.append(model["second"].item())
        away = (model["shared"] - 0.01) ** 2 + in_second * (model["second"] - 0.01) ** 2
        return away.sum() + 1e-4

    rate = suggest(model, [{"second": torch.tensor([second])} for second in (0, 1)], loss=loss)

    assert rate.parameters == 2
    assert set(seen) == {0.0}
    assert model["second"].item() == 0.0


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_rate_does_not_depend_on_the_losss_magnitude(scale):
    quadratic = Quadratic(1)
    plain = suggest(Point(quadratic.start), quadratic.batches, loss=quadratic)
    scaled = suggest(
        Point(quadratic.start), quadratic.batches, loss=lambda model, batch: scale * quadratic(model, batch)
    )
    for name in ("value", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-6)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_parameters_in_another_unit_get_the_rate_in_that_unit(unit):
    quadratic = Quadratic(2)
    plain = suggest(Point(quadratic.start), quadratic.batches, loss=quadratic)

    def in_unit(model, batch):
        away = model.theta / unit - batch["rows"]
        return ((away @ quadratic.curvature) * away).sum(1).mean() / 2

    scaled = suggest(Point(quadratic.start * unit), quadratic.batches, loss=in_unit)
    assert scaled.value == pytest.approx(unit * plain.value, rel=1e-6)


def two_valleys(x):
    """A valley of depth 0.2 at 0.01, and one of depth 0.8 a hundred times further out."""
    return 1 - 0.2 * torch.exp(-(((x - 0.01) / 0.006) ** 2)) - 0.8 * torch.exp(-(((x - 1.0) / 0.4) ** 2))


def test_the_first_minimum_counts_and_not_a_lower_one_far_out():
    assert two_valleys(torch.tensor(1.0)) < two_valleys(torch.tensor(0.01)) - 0.5
    assert on_a_line(two_valleys).value == pytest.approx(0.01, rel=0.1)


def test_a_rise_of_a_twentieth_of_the_fall_does_not_end_the_line():
    losses = [0.9, 0.6, 0.61, 0.3, 0.8]
    assert first_valley(losses, before=1.0) == Valley(index=3, risen=True)
    assert first_valley([0.9, 0.6, 0.65, 0.3, 0.8], before=1.0) == Valley(index=1, risen=True)


def test_what_is_not_finite_has_risen():
    for loss in (math.inf, math.nan):
        assert first_valley([0.9, loss, 0.1], before=1.0) == Valley(index=0, risen=True)


def test_a_loss_that_is_zero_at_the_start_can_fall_below_zero():
    rate = on_a_line(lambda x: (x - 0.02) ** 2 - 0.02**2)
    assert rate.loss_before == 0
    assert rate.value == pytest.approx(0.02, rel=1e-6)


def test_a_negative_loss_is_no_obstacle():
    rate = on_a_line(lambda x: -2 + (x / 1e9 - 1) ** 2)  # 1e9 is too far for a start that knows no scale
    assert rate.loss_before == pytest.approx(-1)
    assert rate.value == pytest.approx(1e9, rel=1e-6)


def test_a_first_rate_beyond_the_valley_goes_back_to_it():
    # falls by a hundredth only, while the first rate is where a straight line would have fallen by a sixth
    rate = on_a_line(lambda x: 10 + 0.01 * ((x / 1e-3 - 1) ** 2 - 1))
    assert rate.curve[-1][1] > 10
    assert rate.value == pytest.approx(1e-3, rel=1e-6)


def bowl(x):
    return (x - 0.01) ** 2 + 1e-5


def bowl_with_a_wall(x):
    return bowl(x) if x < 0.015 else x * math.inf


def test_losses_that_explode_or_are_not_finite_end_the_line():
    wall = on_a_line(bowl_with_a_wall)
    assert 0.005 < wall.value < 0.015
    assert [loss for _, loss in wall.curve if not math.isfinite(loss)] == [math.inf]
    assert math.isinf(wall.halves[0][-1][1])
    not_a_number = on_a_line(lambda x: bowl(x) + 0 * torch.log(0.015 - x))
    assert not_a_number.curve == wall.curve
    explosion = on_a_line(lambda x: bowl(x) + torch.exp(2000 * (x - 0.02)))
    assert explosion.value == pytest.approx(0.01, rel=0.15)


def test_where_the_parabola_is_wrong_the_grids_own_minimum_counts():
    def kinked(x):  # the parabola's vertex lies left of the kink at the grid point, where the loss is higher
        return torch.where(x < 0.64, 1 - x, 0.36 + 50 * (x - 0.64))

    rate = on_a_line(kinked)
    assert rate.loss_at_value == min(loss for _, loss in rate.curve)
    assert rate.value in [step for step, _ in rate.curve]


def test_a_half_that_does_not_fall_makes_the_lower_end_zero():
    gradients = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([-0.1, -0.1, 5.0])]

    def loss(model, batch):
        return 1 + batch["gradient"][0] @ model.theta.float() + 5 * (model.theta.float() ** 2).sum()

    rate = suggest(Point([0.0] * 3), [{"gradient": gradient[None]} for gradient in gradients], loss=loss)
    assert rate.low == 0
    assert 0 < rate.value < rate.high


# ---- the walk


@given(start=st.floats(-6, 6), valley=st.floats(-3, 3), limit=st.integers(1, 30))
def test_the_walk_brackets_a_valley_from_any_start_or_stops_at_its_limit(start, valley, limit):
    asked = []

    def evaluate(rate):
        asked.append(rate)
        return ((rate / 10**valley - 1) ** 2,)

    points = walk(evaluate, before=(1.0,), start=10**start, limit=limit)

    rates = [rate for rate, _ in points]
    assert len(asked) == len(set(asked)) == len(points) <= limit
    assert all(b == 2 * a for a, b in itertools.pairwise(rates))
    if len(points) < limit:
        assert rates[0] < 10**valley < rates[-1]


def test_the_walk_goes_on_until_every_curve_is_bracketed():
    points = walk(lambda rate: ((rate - 1) ** 2, (rate / 8 - 1) ** 2), before=(1.0, 1.0), start=0.25, limit=30)
    rates = [rate for rate, _ in points]
    assert rates[0] < 1
    assert rates[-1] > 8


@given(st.floats(0.5, 2), st.floats(-5, 5), st.floats(0.1, 10))
def test_the_parabola_is_exact_on_a_quadratic(vertex, height, bend):
    rates = [0.5, 1.0, 2.0]
    losses = [height + bend * (rate - vertex) ** 2 for rate in rates]
    assert refined_minimum(rates, losses, 1) == pytest.approx(vertex, rel=1e-6)


def test_without_two_finite_neighbours_the_grid_is_not_refined():
    assert refined_minimum([1, 2, 4], [3.0, 1.0, math.inf], 1) == 2
    assert refined_minimum([1, 2, 4], [1.0, 3.0, 5.0], 0) == 1
    assert refined_minimum([1, 2, 4], [5.0, 3.0, 1.0], 2) == 4


# ---- real models


def tiny_llama(**changes):
    torch.manual_seed(0)
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        **changes,
    }
    return LlamaForCausalLM(LlamaConfig(**config))


def tiny_lora(dropout=0.0, **changes):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=dropout)
    return adapted(tiny_llama(**changes), config)


def adapted(model, config):
    torch.manual_seed(1)
    with warnings.catch_warnings():  # peft 0.21 reads a property that transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def counting_batches(number=4, rows=2, length=12):
    generator = torch.Generator().manual_seed(7)
    batches = []
    for index in range(number):
        first = torch.randint(0, 8, (rows, 1), generator=generator)
        tokens = (first + torch.arange(length)) % 16
        labels = tokens.clone()
        labels[:, : 1 + 2 * index] = -100
        batches.append({"input_ids": tokens, "labels": labels})
    return batches


def bits(tensor):
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).clone()


def traces(model):
    """All that a suggestion must leave as it was, compared by identity or by bits."""
    numpy_state = np.random.get_state()[1].tobytes()  # noqa: NPY002
    random_states = (random.getstate(), numpy_state, torch.get_rng_state())
    parameters = {
        name: (parameter, bits(parameter), parameter.data_ptr(), parameter.requires_grad, parameter.grad)
        for name, parameter in model.named_parameters()
    }
    gradients = {
        name: bits(parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    buffers = {name: bits(buffer) for name, buffer in model.named_buffers()}
    modules = {
        name: (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    return random_states, parameters, gradients, buffers, modules, model.config.use_cache


def assert_same(before, after):
    assert before[0][:2] == after[0][:2]
    assert torch.equal(before[0][2], after[0][2])
    for name, (parameter, stored, pointer, requires_grad, gradient) in before[1].items():
        now = after[1][name]
        assert now[0] is parameter, name
        assert torch.equal(now[1], stored), name
        assert now[2:4] == (pointer, requires_grad), name
        assert now[4] is gradient, name
    for kind in (2, 3):
        assert before[kind].keys() == after[kind].keys()
        assert all(torch.equal(before[kind][name], after[kind][name]) for name in before[kind])
    assert before[4:] == after[4:]


def used_model(dropout=0.2):
    """An adapter in the middle of training: odd modes, gradients, a frozen parameter, values that rounding changes."""
    model = tiny_lora(dropout=dropout)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.train()
    model.base_model.model.model.layers[0].eval()
    first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    first.grad = torch.full_like(first, 3.0)
    return model


def test_nothing_is_left_behind():
    model = used_model()
    before = traces(model)

    class Shuffled(list):  # as a DataLoader, it draws random numbers
        def __iter__(self):
            torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
            return super().__iter__()

    suggest(model, Shuffled(counting_batches()))
    assert_same(before, traces(model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_when_any_forward_pass_is_interrupted(error):
    model, batches = used_model(), counting_batches(2)
    own_loss, before = (lambda model, batch: model(**batch).loss), traces(model)
    for fatal in itertools.count():
        calls = itertools.count()

        def interrupted(model, batch, fatal=fatal, calls=calls):
            if next(calls) == fatal:
                raise error("stop here")
            return own_loss(model, batch)

        try:
            suggest(model, batches, loss=interrupted)
        except error:
            assert_same(before, traces(model))
        else:
            break
    assert fatal >= 2 + 2 * 5  # the gradients, and at least five rates


def test_nothing_is_left_behind_when_a_backward_pass_is_interrupted():
    model, before = (used := used_model()), traces(used)

    class Interrupted(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            raise KeyboardInterrupt("stop here")

    with pytest.raises(KeyboardInterrupt, match="stop here"):
        suggest(model, counting_batches(), loss=lambda model, batch: Interrupted.apply(model(**batch).loss))
    assert_same(before, traces(model))


def test_a_second_call_gives_the_same_bits_whatever_the_random_state():
    model, batches = used_model(), counting_batches()
    first = suggest(model, batches).to_dict()
    torch.manual_seed(99)
    second = suggest(model, batches).to_dict()
    del first["seconds"], second["seconds"]
    assert first == second


def test_a_loss_that_draws_random_numbers_draws_the_same_at_every_rate():
    quadratic = Quadratic(4)

    def noisy(model, batch):
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return quadratic(model, batch) + noise

    rate = suggest(Point(quadratic.start), quadratic.batches, loss=noisy, seed=5)
    assert rate.value == pytest.approx(quadratic.closed_form()[0], rel=1e-4)
    other = suggest(Point(quadratic.start), quadratic.batches, loss=noisy, seed=6)
    assert rate.loss_before != other.loss_before


def test_dropout_is_off():
    batches = counting_batches()
    without, with_dropout = tiny_lora().train(), tiny_lora(dropout=0.5).train()
    assert suggest(without, batches).curve == suggest(with_dropout, batches).curve


def test_a_fresh_lora_moves_b_alone_and_by_the_rate():
    model, seen = tiny_lora(), []
    start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}

    def recorded(model, batch):
        now = dict(model.named_parameters())
        seen.append({name: (now[name].detach() - value).abs().unique() for name, value in start.items()})
        return model(**batch).loss

    rate = suggest(model, counting_batches(2), loss=recorded)

    factors_b = [name for name in start if "lora_B" in name]
    assert rate.parameters == sum(start[name].numel() for name in factors_b)
    assert all(moves[name].tolist() == [0] for moves in seen for name in start if name not in factors_b)
    for name in factors_b:  # each entry by the same rate, at two gradients and in both halves
        assert all(len(moves[name]) == 1 for moves in seen)
        sizes = sorted(moves[name].item() for moves in seen)
        assert sizes == pytest.approx(sorted(2 * [0, *(step for step, _ in rate.curve)]), rel=1e-6)


def test_tied_parameters_move_once():
    model, moves = tiny_llama(tie_word_embeddings=True), set()
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    start = embedding.detach().double().clone()

    def recorded(model, batch):
        moves.update((embedding.detach().double() - start).abs().amax().reshape(1).tolist())
        return model(**batch).loss

    rate = suggest(model, counting_batches(2), loss=recorded)
    assert len(moves) == len(rate.curve) + 1
    expected = [0, *(step for step, _ in rate.curve)]
    assert sorted(moves) == pytest.approx(expected, rel=1e-4, abs=1e-8)
    assert rate.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_in_bfloat16_the_step_is_rounded_once_to_the_parameters():
    start = torch.tensor([1.0, -2.0, 0.5, 0.01], dtype=torch.bfloat16)
    goal, seen = torch.tensor([1.3, -2.3, 0.8, 0.31]), []

    def loss(model, batch):
        seen.append(model.theta.detach().clone())
        return ((model.theta.float() - goal) ** 2).sum()

    rate = suggest(Point(start, torch.bfloat16), [{"x": torch.zeros(1)}] * 2, loss=loss)

    assert rate.dtypes == ("bfloat16",)
    assert rate.value == pytest.approx(0.3, rel=0.1)
    step = torch.tensor([1.0, -1.0, 1.0, 1.0])
    possible = [(start.float() + size * step).bfloat16() for size, _ in rate.curve]
    assert all(any(torch.equal(theta, one) for one in possible) for theta in seen[2:])


def test_a_bfloat16_model_gets_about_the_rate_of_the_float32_model():
    batches = counting_batches()
    exact, rounded = suggest(tiny_lora(), batches), suggest(tiny_lora().to(torch.bfloat16), batches)
    assert rounded.dtypes == ("bfloat16",)
    assert exact.dtypes == ("float32",)
    assert 1 / 1.5 < rounded.value / exact.value < 1.5


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing_and_warns_of_nothing(reentrant):
    batches = counting_batches()
    plain = suggest(tiny_lora().train(), batches)
    model = tiny_lora().train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    before = traces(model)
    checkpointed = suggest(model, batches)
    np.testing.assert_allclose(checkpointed.curve, plain.curve, rtol=1e-6)
    assert_same(before, traces(model))


def test_a_larger_gamma_gives_a_larger_rate_by_its_root():
    batches, values = counting_batches(), []
    for gamma in (0.25, 1):  # so small that the step is small beside the factors: the law is a first-order one
        config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear")
        model = adapted(tiny_llama(), config)
        loraga.initialize(model, batches, gamma=gamma, progress=False)
        values.append(suggest(model, batches).value)
    assert values[1] / values[0] == pytest.approx(2, rel=0.05)


# ---- what it says


def test_the_result_is_plain_json_also_with_an_infinite_loss():
    rate = on_a_line(bowl_with_a_wall)
    read = json.loads(json.dumps(rate.to_dict(), allow_nan=False))
    assert read["value"] == rate.value
    assert read["curve"][-1] == [rate.curve[-1][0], None]
    assert read["curve"][0] == list(rate.curve[0])
    assert len(read["halves"]) == 2
    assert read["dtypes"] == ["float64"]
    with pytest.raises(AttributeError, match="cannot assign"):
        rate.value = 1.0


def test_one_log_message_says_the_rate_and_the_losses(caplog):
    quadratic = Quadratic(0)
    with caplog.at_level(logging.INFO, logger="loraga"):
        rate = suggest(Point(quadratic.start), quadratic.batches, loss=quadratic)
    [message] = [record.getMessage() for record in caplog.records if record.name == "loraga"]
    assert message.startswith(str(rate))
    for number in (f"{rate.value:.2g}", f"{rate.loss_before:.4g}", f"{rate.loss_at_value:.4g}", "4 batches"):
        assert number in message


def test_the_progress_bar_obeys_its_switch_and_transformers_own(capfd):
    quadratic = Quadratic(0)

    def shown(progress):
        suggest(Point(quadratic.start), quadratic.batches, loss=quadratic, progress=progress)
        return "learning rate" in capfd.readouterr().err

    assert shown(True)
    assert not shown(False)
    transformers_logging.disable_progress_bar()
    try:
        assert not shown(True)
    finally:
        transformers_logging.enable_progress_bar()


def test_the_picture_is_written(tmp_path):
    rate = on_a_line(bowl_with_a_wall)
    rate.plot(tmp_path / "rate.png")
    written = (tmp_path / "rate.png").read_bytes()
    assert written.startswith(b"\x89PNG")
    assert len(written) > 10_000
    assert "matplotlib.pyplot" not in sys.modules


def test_a_picture_without_matplotlib_names_the_extra(monkeypatch, tmp_path):
    rate = on_a_line(bowl)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LoragaError, match=r"loraga\[lab\]"):
        rate.plot(tmp_path / "rate.png")


# ---- what it refuses


def test_batches_that_are_too_few_are_refused():
    one = [{"x": torch.zeros(1)}]
    with pytest.raises(BatchError, match="at least 2 batches"):
        suggest(Point([0.0]), one, loss=lambda model, batch: (model.theta[0] - 1) ** 2)
    with pytest.raises(BatchError, match="at least 2 batches"):
        suggest(Point([0.0]), one * 3, num_batches=1, loss=lambda model, batch: (model.theta[0] - 1) ** 2)
    with pytest.raises(BatchError, match="empty"):
        suggest(Point([0.0]), [], loss=lambda model, batch: model.theta[0])
    with pytest.raises(BatchError, match=r"pass \[batch\]"):
        suggest(Point([0.0]), one[0], loss=lambda model, batch: model.theta[0])


def test_only_num_batches_are_taken_from_an_endless_iterable():
    quadratic = Quadratic(0)
    taken = []

    def endless():
        for batch in itertools.cycle(quadratic.batches):
            taken.append(batch)
            yield batch

    rate = suggest(Point(quadratic.start), endless(), loss=quadratic, num_batches=4)
    assert rate.num_batches == len(taken) == 4


def test_a_model_without_trainable_parameters_is_refused():
    model = tiny_llama().requires_grad_(False)
    with pytest.raises(GradientError, match="no trainable parameter; attach an adapter"):
        suggest(model, counting_batches())


def test_a_loss_that_is_not_finite_at_the_start_names_the_batch():
    batches = [{"x": torch.tensor([1.0])}, {"x": torch.tensor([math.nan])}]
    with pytest.raises(BatchError, match="batch 1: the loss is nan"):
        suggest(Point([0.0]), batches, loss=lambda model, batch: (model.theta[0] - batch["x"][0]) ** 2)


def test_a_gradient_that_is_not_finite_names_the_parameter():
    with pytest.raises(GradientError, match="gradient of theta is not finite"):
        on_a_line(lambda x: 1 - torch.sqrt(x.abs()))


def test_parameters_that_are_not_in_use_are_refused():
    with pytest.raises(GradientError, match="batch 0: the loss does not depend on a trainable parameter"):
        on_a_line(lambda x: torch.tensor(1.0))
    with pytest.raises(GradientError, match="zero or missing"):
        on_a_line(lambda x: 1 + x**2)


def test_a_line_that_never_rises_is_refused():
    with pytest.raises(GradientError, match=r"the largest gives the lowest loss.*raise max_rates"):
        on_a_line(lambda x: 1 - x)


def test_a_line_that_never_falls_is_refused():
    gradients = [torch.tensor([[1.0]]), torch.tensor([[-1.0]])]
    with pytest.raises(GradientError, match=r"at none of 20 learning rates.*more or larger batches"):
        suggest(
            Point([0.0]),
            [{"gradient": gradient} for gradient in gradients],
            loss=lambda model, batch: 1 + batch["gradient"][0] @ model.theta.float() + model.theta[0] ** 2,
        )
