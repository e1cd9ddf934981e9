"""Tests of the report: the first step against the dense formula and against a step that was taken, and the totals."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from loraga import LayerReport, Report
from loraga.gradient import LowRankGradient, factor_matrix
from loraga.report import FirstStep, first_step, product_norm, total_cosine, total_coverage
from loraga.scheme import SCHEMES, Factors, Setting
from tests.planted import first_step_operator, planted


def random_factors(d_out, d_in, rank, seed, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        A=scale * torch.randn(rank, d_in, generator=generator), B=scale * torch.randn(d_out, rank, generator=generator)
    )


def dense_step(matrix, factors, eta):
    """eta^2 (G A^T A + B B^T G) in float64."""
    return eta**2 * first_step_operator(matrix, factors.A, factors.B)


def dense_first_step(matrix, factors, eta):
    step = dense_step(matrix, factors, eta)
    return FirstStep(float((step * matrix).sum()), float(step.square().sum()), float(matrix.square().sum()))


# ---- the first step


@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 8), st.floats(0.1, 10), st.integers(0, 1000),
    st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
def test_first_step_is_the_dense_formula(d_out, d_in, rank, eta, seed, scale):
    matrix = planted(d_out, d_in, seed=seed, scale=scale).matrix
    factors = random_factors(d_out, d_in, rank, seed)
    found, expected = first_step(factor_matrix(matrix, 1), factors, eta), dense_first_step(matrix, factors, eta)
    assert found.product == pytest.approx(expected.product, rel=1e-4)
    assert found.step_squared == pytest.approx(expected.step_squared, rel=1e-4)
    assert found.gradient_squared == pytest.approx(expected.gradient_squared, rel=1e-4)
    step = dense_step(matrix, factors, eta)
    cosine = float((step * matrix).sum() / step.norm() / matrix.norm())
    assert found.cosine == pytest.approx(cosine, abs=1e-4)
    assert found.relative_norm == pytest.approx(float(step.norm() / matrix.norm()), rel=1e-4)


def setting(rank, gamma=32.0):
    return Setting(rank=rank, gamma=gamma, stability="forward", generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_first_step_is_a_step_of_gradient_descent_on_the_factors(shape):
    """y = W x + eta (B A - B0 A0) x, one step of SGD on A and B, and the change of W + eta B A that it makes."""
    d_out, d_in, rank, eta, rate = *shape, 4, 3.0, 1e-6
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(d_in, d_out, bias=False, dtype=torch.float64)
    X = torch.randn(200, d_in, generator=generator, dtype=torch.float64)
    goal = torch.randn(200, d_out, generator=generator, dtype=torch.float64)

    def loss(output):
        return (torch.tanh(output) - goal).square().mean()

    loss(layer(X)).backward()
    matrix = layer.weight.grad
    gradient = factor_matrix(matrix, 200)
    start = SCHEMES["lora_ga"].factors(gradient, setting(rank))
    A, B = (nn.Parameter(factor.double()) for factor in (start.A, start.B))
    before = (B @ A).detach()
    optimizer = torch.optim.SGD([A, B], lr=rate)
    loss(layer(X).detach() + eta * X @ (B @ A - before).T).backward()
    optimizer.step()
    change = -eta * ((B @ A).detach() - before) / rate  # minus the step over the rate: along +G
    found = first_step(gradient, start, eta)
    assert found.product == pytest.approx(float((change * matrix).sum()), rel=1e-4)
    assert found.step_squared == pytest.approx(float(change.square().sum()), rel=1e-4)
    assert found.gradient_squared == pytest.approx(float(matrix.square().sum()), rel=1e-4)


def test_lora_ga_steps_as_far_as_it_covers():
    """Theorem 3.1: the step is zeta times the gradient's first 2r triplets, so the cosine is the root of coverage."""
    gradient = factor_matrix(planted(48, 80, seed=3).matrix, 1)
    eta = SCHEMES["lora_ga"].eta(16, 4)
    step = first_step(gradient, SCHEMES["lora_ga"].factors(gradient, setting(4)), eta)
    zeta = 16**2 / 32 * math.sqrt(48) / 4
    assert step.cosine == pytest.approx(math.sqrt(gradient.coverage(8)), rel=1e-4)
    assert step.relative_norm == pytest.approx(zeta * math.sqrt(gradient.coverage(8)), rel=1e-4)


def test_what_the_factors_leave_out_counts_in_the_cosine():
    whole = factor_matrix(planted(48, 80, seed=3).matrix, 1)
    cut = whole.truncate(8)
    factors, eta = SCHEMES["lora_ga"].factors(cut, setting(4)), 8.0  # the tail is orthogonal to these
    assert first_step(cut, factors, eta).cosine == pytest.approx(first_step(whole, factors, eta).cosine, rel=1e-5)
    assert first_step(cut, factors, eta).cosine < 0.999


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_losss_scale_changes_neither_cosine_nor_relative_norm(scale):
    matrix, factors = planted(30, 20, seed=4).matrix, random_factors(30, 20, 4, 1)
    one, scaled = (first_step(factor_matrix(m, 1), factors, 2.0) for m in (matrix, scale * matrix))
    assert scaled.cosine == pytest.approx(one.cosine, rel=1e-5)
    assert scaled.relative_norm == pytest.approx(one.relative_norm, rel=1e-5)


def test_transposing_the_gradient_and_swapping_the_factors_changes_nothing():
    matrix, factors = planted(30, 20, seed=4).matrix, random_factors(30, 20, 4, 1)
    straight = first_step(factor_matrix(matrix, 1), factors, 2.0)
    turned = first_step(factor_matrix(matrix.T, 1), Factors(A=factors.B.T, B=factors.A.T), 2.0)
    assert turned.product == pytest.approx(straight.product, rel=1e-5)
    assert turned.step_squared == pytest.approx(straight.step_squared, rel=1e-5)


def test_first_step_repeats_bit_for_bit():
    gradient, factors = factor_matrix(planted(30, 20, seed=4).matrix, 1), random_factors(30, 20, 4, 1)
    assert first_step(gradient, factors, 2.0) == first_step(gradient, factors, 2.0)


def test_zero_gradients_and_zero_steps_have_no_cosine():
    factors = random_factors(6, 7, 2, 0)
    zero = first_step(factor_matrix(torch.zeros(6, 7), 1), factors, 1.0)
    assert (zero.cosine, zero.relative_norm) == (None, None)
    none = LowRankGradient(U=torch.zeros(6, 0), S=torch.zeros(0), Vh=torch.zeros(0, 7), tail=0.0, loss_terms=0.0)
    assert first_step(none, factors, 1.0).cosine is None
    still = Factors(A=torch.zeros(2, 7), B=torch.zeros(6, 2))
    step = first_step(factor_matrix(planted(6, 7).matrix, 1), still, 1.0)
    assert (step.cosine, step.relative_norm) == (None, 0.0)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 8), st.integers(0, 1000))
def test_product_norm_is_that_of_the_dense_product(d_out, d_in, rank, seed):
    factors = random_factors(d_out, d_in, rank, seed)
    dense = factors.B.double() @ factors.A.double()
    assert product_norm(factors) == pytest.approx(float(dense.norm()), rel=1e-9)


# ---- totals


def test_totals_are_those_of_all_layers_laid_side_by_side():
    shapes, ranks, etas = [(30, 20), (16, 44), (25, 25)], [4, 2, 8], [2.0, 1.0, 0.5]
    matrices = [planted(*shape, seed=i, scale=4.0**i).matrix for i, shape in enumerate(shapes)]
    gradients = [factor_matrix(matrix, 1) for matrix in matrices]
    factors = [random_factors(*shape, rank, i) for i, (shape, rank) in enumerate(zip(shapes, ranks, strict=True))]
    layers = list(zip(matrices, factors, etas, strict=True))
    steps = torch.cat([dense_step(*layer).flatten() for layer in layers])
    G = torch.cat([matrix.flatten() for matrix in matrices])
    found = total_cosine([first_step(g, f, eta) for g, f, eta in zip(gradients, factors, etas, strict=True)])
    assert found == pytest.approx(float(steps @ G / steps.norm() / G.norm()), rel=1e-4)
    covered = sum(float(torch.linalg.svdvals(m)[: 2 * r].square().sum()) for m, r in zip(matrices, ranks, strict=True))
    assert total_coverage(gradients, ranks) == pytest.approx(covered / float(G.square().sum()), rel=1e-4)


def test_totals_of_nothing():
    assert total_cosine([]) is None
    assert total_coverage([], []) == 0
    assert total_coverage([factor_matrix(torch.zeros(5, 4), 1)], [2]) == 0


# ---- the table


def layer_report(cosine, offset_norm=0.01, rank=8):
    return LayerReport(rank, 4.0, 32, 0.9, cosine, None if cosine is None else 12.5, offset_norm)


def report(layers, **changes):
    facts = {
        "scheme": "lora_ga", "offset": "adapter", "gamma": 16.0, "estimator": "streaming", "loss_terms": 1234.0,
        "seconds": 2.5, "function_change": 0.0, "layers": layers, "skipped": {"idle": "no gradient"},
        "coverage": 0.87, "cosine": 0.93,
    }  # fmt: skip
    return Report(**{**facts, **changes})


def test_the_table_shows_the_ten_worst_layers_the_worst_first_and_the_totals():
    cosines = [((7 * i) % 25) / 25 for i in range(25)]
    text = str(report({f"layer.{i}": layer_report(cosine, 0.01 * (i + 1)) for i, cosine in enumerate(cosines)}))
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("layer.")]
    assert shown == [f"layer.{i}" for i in sorted(range(25), key=cosines.__getitem__)[:10]]
    assert "... and 15 layers with a higher cosine" in text
    assert "lora_ga, offset=adapter, gamma=16: 25 layers from 1234 loss terms in 2.5 s (streaming), 1 skipped" in text
    assert "all layers: coverage 0.87, cosine 0.93" in text
    assert "offset/W: median 0.13, largest 0.25" in text
    assert "saved as a plain LoRA of rank 16 (twice the trained rank)" in text
    assert "change of the model's outputs on the first batch: 0" in text
    assert "skipped idle: no gradient" in text


def test_layers_without_a_cosine_come_first_and_show_a_dash():
    layers = {"good": layer_report(0.9), "blind": layer_report(None, None), "bad": layer_report(0.1)}
    rows = str(report(layers)).splitlines()
    assert [row.split()[0] for row in rows[1:4]] == ["blind", "bad", "good"]
    assert rows[1].split()[1:] == ["8", "0.9", "-", "-", "-"]
    assert rows[2].split()[1:] == ["8", "0.9", "0.1", "12.5", "0.01"]


def test_several_layers_without_a_cosine_can_be_shown():
    layers = {"good": layer_report(0.5), "one": layer_report(None), "two": layer_report(None)}
    assert [row.split()[0] for row in str(report(layers)).splitlines()[1:4]] == ["one", "two", "good"]


def test_an_empty_report_and_one_without_an_offset_can_be_shown():
    assert "0 layers" in str(report({}, coverage=0.0, cosine=None, function_change=None))
    text = str(report({"one": layer_report(0.5)}, offset="none", function_change=0.004))
    assert "twice the trained rank" not in text
    assert "change of the model's outputs on the first batch: 0.004" in text


def test_to_dict_is_json_with_every_fact():
    layers = {"a.b": layer_report(0.5), "c": layer_report(None)}
    original = report(layers)
    data = json.loads(json.dumps(original.to_dict()))
    assert data["layers"]["a.b"]["offset_norm"] == 0.01
    rebuilt = Report(**{**data, "layers": {name: LayerReport(**layer) for name, layer in data["layers"].items()}})
    assert rebuilt == original
