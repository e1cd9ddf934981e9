"""Tests of the schemes: the paper's theorems in closed form, by sampling, and against other choices."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

import loraga
from loraga import GradientError, LowRankGradient
from loraga.gradient import factor_matrix
from loraga.scheme import (
    SCHEMES,
    Factors,
    Scheme,
    Setting,
    require_columns,
    scaling_by_rank,
    scaling_by_root_of_rank,
    stable_scale,
)
from tests.planted import first_step_operator, orthonormal, planted, tail_norm

SHAPES = [(48, 80), (80, 48), (64, 64)]
ALPHA, GAMMA, RANK = 16.0, 32.0, 8


def setting(rank=RANK, gamma=GAMMA, stability="forward", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Setting(rank=rank, gamma=gamma, stability=stability, generator=generator)


def gradient_of(planted_gradient, columns=None):
    factored = factor_matrix(planted_gradient.matrix, 1)
    return factored if columns is None else factored.truncate(columns)


def start(scheme, gradient, **keywords):
    return SCHEMES[scheme].factors(gradient, setting(**keywords))


def assert_close(actual, expected, bound):
    error = float((actual.double() - expected.double()).norm())
    assert error <= bound, f"{error:.3g} > {bound:.3g}"


def identity(size):
    return torch.diag(torch.full((size,), 1.0, dtype=torch.float64))


# ---- Theorem 3.1


def step_residual(matrix, factors, eta, zeta):
    return float((eta**2 * first_step_operator(matrix, factors.A, factors.B) - zeta * matrix).norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", ["lora_ga", "gradient"])
@pytest.mark.parametrize("stability", ["forward", "backward"])
def test_the_first_step_leaves_the_eckart_young_tail(shape, scheme, stability):
    gradient = planted(*shape, seed=1)
    factors = start(scheme, gradient_of(gradient, 4 * RANK), stability=stability)
    eta = SCHEMES[scheme].eta(ALPHA, RANK)
    d = shape[0] if stability == "forward" else shape[1]
    zeta = ALPHA**2 / GAMMA * math.sqrt(d) / RANK if scheme == "lora_ga" else eta**2
    residual = step_residual(gradient.matrix, factors, eta, zeta)
    assert residual == pytest.approx(zeta * tail_norm(gradient.S, 2 * RANK), rel=1e-4)


@given(st.sampled_from(SHAPES), st.integers(0, 10_000), st.floats(0.02, 2.0))
def test_no_other_orthonormal_choice_leaves_less(shape, seed, distance):
    gradient = planted(*shape, seed=1)
    ours = start("gradient", gradient_of(gradient))
    best = step_residual(gradient.matrix, ours, eta=1.0, zeta=1.0)
    generator = torch.Generator().manual_seed(seed)
    moved_A = torch.linalg.qr(ours.A.double().T + distance * orthonormal(shape[1], RANK, generator)).Q.T
    moved_B = torch.linalg.qr(ours.B.double() + distance * orthonormal(shape[0], RANK, generator)).Q
    for other in (
        Factors(A=moved_A, B=moved_B),
        Factors(A=moved_A, B=ours.B),
        Factors(A=ours.A, B=moved_B),
        Factors(A=orthonormal(shape[1], RANK, generator).T, B=orthonormal(shape[0], RANK, generator)),
        Factors(A=gradient.Vh[:RANK], B=gradient.U[:, :RANK]),  # overlapping index sets
        Factors(A=gradient.Vh[RANK : 2 * RANK], B=gradient.U[:, 2 * RANK : 3 * RANK]),
    ):
        assert step_residual(gradient.matrix, other, eta=1.0, zeta=1.0) > best * (1 + 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_lora_ga_takes_the_first_right_and_the_next_left_vectors(shape):
    gradient = planted(*shape, seed=2)
    factors = start("lora_ga", gradient_of(gradient))
    scale = shape[0] ** 0.25 / math.sqrt(GAMMA)
    assert (factors.A.shape, factors.B.shape) == ((RANK, shape[1]), (shape[0], RANK))
    assert {factors.A.dtype, factors.B.dtype} == {torch.float32}
    assert_close(factors.A @ factors.A.T, scale**2 * identity(RANK), 1e-4)
    assert_close(factors.B.T @ factors.B, scale**2 * identity(RANK), 1e-4)
    # each row and column is a planted vector at the scale, with one sign for both sides of a triplet
    A_on_V, B_on_U = gradient.Vh @ factors.A.double().T, gradient.U.T @ factors.B.double()
    for i in range(RANK):
        assert abs(float(A_on_V[i, i])) == pytest.approx(scale, rel=1e-4)
        assert abs(float(B_on_U[RANK + i, i])) == pytest.approx(scale, rel=1e-4)


@given(st.sampled_from(SHAPES), st.integers(0, 10_000))
def test_the_singular_values_never_matter(shape, seed):
    gradient = gradient_of(planted(*shape, seed=seed))
    other = torch.rand(len(gradient.S), generator=torch.Generator().manual_seed(seed)).sort(descending=True).values
    for scheme in SCHEMES:
        one, two = (start(scheme, replace(gradient, S=S)) for S in (gradient.S, 1e-3 + other))
        assert torch.equal(one.A, two.A)
        assert torch.equal(one.B, two.B)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("scheme", ["lora_ga", "gradient"])
def test_the_losss_scale_leaves_the_first_step_where_it_is(scheme, scale):
    gradient = planted(48, 80, seed=3)
    steps = []
    for matrix in (gradient.matrix, scale * gradient.matrix):
        factors = start(scheme, factor_matrix(matrix, 1))
        steps.append(first_step_operator(gradient.matrix, factors.A, factors.B))
    assert_close(steps[1], steps[0], 1e-3 * float(steps[0].norm()))


def test_the_transposed_gradient_with_the_other_stability_leaves_as_little():
    gradient = planted(48, 80, seed=3)
    eta = scaling_by_root_of_rank(ALPHA, RANK)
    zeta = ALPHA**2 / GAMMA * math.sqrt(48) / RANK
    straight = start("lora_ga", gradient_of(gradient), stability="forward")
    turned = start("lora_ga", factor_matrix(gradient.matrix.T, 1), stability="backward")
    residuals = [
        step_residual(matrix, factors, eta, zeta)
        for matrix, factors in ((gradient.matrix, straight), (gradient.matrix.T, turned))
    ]
    assert residuals[1] == pytest.approx(residuals[0], rel=1e-4)


# ---- Theorem 3.2


@given(st.integers(1, 16), st.integers(32, 128), st.integers(32, 128), st.floats(4, 64), st.floats(1, 100))
def test_the_outputs_second_moment_depends_on_alpha_over_gamma_only(rank, d_out, d_in, gamma, alpha):
    """Eq. 5 for independent inputs of unit variance: E||eta B A x||^2 / d_out = ||eta B A||_F^2 / d_out."""
    gradient = gradient_of(planted(d_out, d_in, seed=rank), 2 * rank)
    eta = SCHEMES["lora_ga"].eta(alpha, rank)
    forward, backward = (
        start("lora_ga", gradient, rank=rank, gamma=gamma, stability=stability) for stability in ("forward", "backward")
    )
    output = float((eta * forward.B @ forward.A).norm()) ** 2 / d_out
    assert output == pytest.approx((alpha / gamma) ** 2, rel=1e-3)
    input_gradient = float((eta * backward.A.T @ backward.B.T).norm()) ** 2 / d_in
    assert input_gradient == pytest.approx((alpha / gamma) ** 2, rel=1e-3)


@pytest.mark.parametrize(("rank", "d_out", "d_in"), [(1, 40, 100), (4, 100, 40), (16, 64, 128), (16, 128, 64)])
def test_sampled_inputs_have_eq_5s_second_moment(rank, d_out, d_in):
    gradient = gradient_of(planted(d_out, d_in, seed=7), 2 * rank)
    eta = SCHEMES["lora_ga"].eta(ALPHA, rank)
    generator = torch.Generator().manual_seed(rank)
    layer = nn.Linear(d_in, d_out, bias=False)
    for stability in ("forward", "backward"):
        factors = start("lora_ga", gradient, rank=rank, stability=stability)
        layer.weight.data = eta * factors.B @ factors.A
        x = (3 * torch.randn(20_000, d_in, generator=generator)).requires_grad_()
        y = layer(x)
        if stability == "forward":
            ratio = float((y.square().mean() / x.square().mean()).detach())
        else:
            upstream = 5 * torch.randn(20_000, d_out, generator=generator)
            (x_grad,) = torch.autograd.grad(y, x, upstream)
            ratio = float(x_grad.square().mean() / upstream.square().mean())
        assert ratio == pytest.approx((ALPHA / GAMMA) ** 2, rel=0.05)


def test_scalings_are_alpha_over_r_and_alpha_over_root_r():
    assert scaling_by_rank(16, 4) == 4
    assert scaling_by_root_of_rank(16, 4) == 8
    etas = {name: scheme.eta(16, 4) for name, scheme in SCHEMES.items()}
    assert etas == {"lora_ga": 8, "stable_output": 8, "gaussian": 4, "gradient": 4}
    assert {name for name, scheme in SCHEMES.items() if scheme.uses_gradient} == {"lora_ga", "gradient"}


@pytest.mark.parametrize("rank", [2, 8])
def test_scalings_are_pefts_own(rank):
    for rslora, eta in ((False, scaling_by_rank), (True, scaling_by_root_of_rank)):
        config = LoraConfig(r=rank, lora_alpha=24, use_rslora=rslora, target_modules=["0"])
        model = get_peft_model(nn.Sequential(nn.Linear(12, 10)), config)
        assert model.base_model.model[0].scaling["default"] == pytest.approx(eta(24, rank), rel=1e-12)


def test_stable_scale_takes_d_out_forward_and_d_in_backward():
    assert stable_scale((81, 16), setting(gamma=4)) == pytest.approx(1.5)
    assert stable_scale((81, 16), setting(gamma=4, stability="backward")) == pytest.approx(1.0)


# ---- Table 3


def no_gradient(d_out, d_in):
    return LowRankGradient(U=torch.zeros(d_out, 0), S=torch.zeros(0), Vh=torch.zeros(0, d_in), tail=0.0, loss_terms=0.0)


def assert_normal(values, variance):
    values = values.double().flatten() / math.sqrt(variance)
    assert float(values.mean()) == pytest.approx(0, abs=0.03)
    assert float(values.var()) == pytest.approx(1, abs=0.05)
    assert float(values.pow(4).mean()) == pytest.approx(3, abs=0.3)  # a uniform draw has 1.8


@pytest.mark.parametrize(("d_out", "d_in"), [(300, 900), (900, 300)])
def test_gaussian_has_table_3s_variances(d_out, d_in):
    factors = start("gaussian", no_gradient(d_out, d_in), rank=32, seed=1)
    assert (factors.A.shape, factors.B.shape) == ((32, d_in), (d_out, 32))
    assert_normal(factors.A, 1 / d_out)
    assert_normal(factors.B, 1 / d_in)
    n = min(factors.A.numel(), factors.B.numel())
    pair = torch.stack([factors.A.flatten()[:n], factors.B.flatten()[:n]])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.05


@pytest.mark.parametrize("stability", ["forward", "backward"])
def test_stable_output_is_gaussian_at_lora_gas_scale(stability):
    d_out, d_in = 300, 900
    factors = start("stable_output", no_gradient(d_out, d_in), rank=32, stability=stability, seed=1)
    squared_scale = math.sqrt(d_out if stability == "forward" else d_in) / GAMMA
    assert_normal(factors.A, squared_scale / d_out)
    assert_normal(factors.B, squared_scale / d_in)


@pytest.mark.parametrize("stability", ["forward", "backward"])
def test_gradient_is_lora_ga_at_unit_scale(stability):
    gradient = gradient_of(planted(48, 80, seed=2))
    unit, scaled = (start(scheme, gradient, stability=stability) for scheme in ("gradient", "lora_ga"))
    assert_close(unit.A @ unit.A.T, identity(RANK), 1e-4)
    assert_close(unit.B.T @ unit.B, identity(RANK), 1e-4)
    scale = stable_scale((48, 80), setting(stability=stability))
    assert torch.allclose(scaled.A, scale * unit.A)
    assert torch.allclose(scaled.B, scale * unit.B)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_scheme_repeats_bit_for_bit_whatever_the_global_random_state(scheme):
    gradient = gradient_of(planted(20, 30, values=1.0 / torch.arange(1, 6)))  # 5 of 16 directions: some are drawn
    torch.manual_seed(1)
    one = start(scheme, gradient, seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = start(scheme, gradient, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.A, two.A)
    assert torch.equal(one.B, two.B)
    assert not torch.equal(one.A, start(scheme, gradient, seed=4).A)


# ---- fewer than 2r singular directions


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 12), st.data())
def test_with_few_directions_A_takes_the_first_and_B_what_is_left(d_out, d_in, rank, data):
    directions = data.draw(st.integers(0, min(d_out, d_in, 2 * rank)))
    values = 1.0 / torch.arange(1, directions + 1) if directions else torch.zeros(1)
    gradient = gradient_of(planted(d_out, d_in, seed=rank, values=values))
    assert gradient.directions == directions
    factors = start("gradient", gradient, rank=rank)
    rows, columns = min(rank, directions), max(0, directions - rank)
    assert (factors.A.shape, factors.B.shape) == ((rank, d_in), (d_out, rank))
    assert torch.equal(factors.A[:rows], gradient.Vh[:rows])
    assert torch.equal(factors.B[:, :columns], gradient.U[:, rank : rank + columns])
    assert not factors.B[:, columns:].any()
    assert (factors.A[rows:].abs() <= 1 / math.sqrt(d_in)).all()
    assert rows == rank or factors.A[rows:].abs().amax(1).min() > 0
    scaled = start("lora_ga", gradient, rank=rank)
    assert torch.allclose(scaled.B, stable_scale((d_out, d_in), setting()) * factors.B)


@pytest.mark.parametrize("scheme", ["gradient", "lora_ga"])
def test_missing_rows_of_A_are_pefts_kaiming_draw(scheme):
    gradient = gradient_of(planted(20, 400, values=1.0 / torch.arange(1, 4)))
    drawn = start(scheme, gradient, rank=16).A[3:]
    bound = 1 / math.sqrt(400)
    layer = get_peft_model(nn.Sequential(nn.Linear(400, 20)), LoraConfig(r=16, target_modules=["0"])).base_model.model[
        0
    ]
    kaiming = layer.lora_A["default"].weight.detach()
    for draw in (drawn, kaiming):
        assert 0.99 * bound < float(draw.abs().max()) <= bound
        assert float(draw.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert float(draw.mean()) == pytest.approx(0, abs=0.03 * bound)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 40))
def test_too_few_columns_are_refused_unless_the_layer_is_as_narrow(d_out, d_in, rank, columns):
    gradient = gradient_of(planted(d_out, d_in), columns)
    if columns >= min(2 * rank, d_out, d_in):
        require_columns(gradient, rank)
        start("lora_ga", gradient, rank=rank)
        return
    message = rf"the gradient has {columns} columns and rank {rank} needs {2 * rank}; estimate it with rank={rank}"
    for refuse in (
        lambda: require_columns(gradient, rank),
        lambda: start("lora_ga", gradient, rank=rank),
        lambda: start("gradient", gradient, rank=rank),
    ):
        with pytest.raises(GradientError, match=message):
            refuse()


# ---- adding a scheme


def test_a_scheme_added_to_the_table_starts_a_model(monkeypatch):
    def last_vectors(gradient, setting):
        return Factors(A=gradient.Vh[-setting.rank :], B=gradient.U[:, : setting.rank])

    monkeypatch.setitem(SCHEMES, "last_vectors", Scheme(last_vectors, scaling_by_rank))
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 9))
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"]))
    batch = {"x": torch.randn(30, 12), "y": torch.randn(30, 9)}
    keywords = {"loss": lambda m, b: (m(b["x"]) - b["y"]).square().mean(), "weight": lambda b: len(b["x"])}
    gradients = loraga.estimate_gradients(model, [batch], rank=2, progress=False, **keywords)
    before = model(batch["x"])
    report = loraga.initialize(model, [batch], scheme="last_vectors", gradients=gradients, progress=False, **keywords)
    assert report.scheme == "last_vectors"
    for name, gradient in gradients.items():
        layer = model.base_model.model.get_submodule(name)
        assert torch.equal(layer.lora_A["default"].weight, gradient.Vh[-2:])
        assert torch.equal(layer.lora_B["default"].weight, gradient.U[:, :2])
        assert report.layers[name].eta == 3
    assert torch.equal(model(batch["x"]), before)


@pytest.mark.parametrize("scheme", ["gaussian", "stable_output"])
def test_a_scheme_without_gradient_starts_a_model_without_batches(scheme):
    model = get_peft_model(
        nn.Sequential(nn.Linear(12, 10)),
        LoraConfig(r=4, lora_alpha=6, use_rslora=scheme == "stable_output", target_modules=["0"]),
    )
    report = loraga.initialize(model, scheme=scheme)
    assert report.layers["0"].offset_norm > 0
    assert report.layers["0"].cosine is None
    assert model.base_model.model[0].lora_B["default"].weight.abs().min() > 0
