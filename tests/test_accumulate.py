"""Tests of the sums over micro-batches: against the float64 sum, and against Theorem 3.1's optimum."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn.functional import pad

from loraga import GradientError
from loraga.accumulate import FactorAccumulator, MatrixAccumulator, holds_matrix
from loraga.gradient import COLUMNS_PER_RANK, layer_generator
from tests.planted import (
    dense_sum,
    first_step_operator,
    micro_batches,
    planted,
    projector,
    reference_svd,
    tail_norm,
)

RANK = 4
SHAPES = [(96, 128), (128, 96), (128, 40)]
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def stream(batches, columns=COLUMNS_PER_RANK * RANK, *, weights=None, loss_terms=1.0, seed=0, **choices):
    return finish(FactorAccumulator(columns, layer_generator(seed, "layer"), **choices), batches, weights, loss_terms)


def hold(batches, columns=COLUMNS_PER_RANK * RANK, *, weights=None, loss_terms=1.0):
    return finish(MatrixAccumulator(columns, torch.device("cpu")), batches, weights, loss_terms)


def hold_and_seek(batches, columns=COLUMNS_PER_RANK * RANK, *, weights=None, loss_terms=1.0, seed=0):
    generator = layer_generator(seed, "layer")
    return finish(MatrixAccumulator(columns, generator=generator), batches, weights, loss_terms)


SUMS = (stream, hold, hold_and_seek)


def finish(accumulator, batches, weights, loss_terms):
    for (X, dY), weight in zip(batches, weights or [1.0] * len(batches), strict=True):
        accumulator.add(X, dY, weight)
    return accumulator.finish(loss_terms)


def dense(gradient):
    return gradient.U.double() @ (gradient.S.double()[:, None] * gradient.Vh.double())


def relative_error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def residual_over_optimum(gradient, matrix, rank=RANK):
    """Theorem 3.1's || G A^T A + B B^T G - G || for unit A = Vh[:r], B = U[:, r:2r], over sqrt(sum_{i>2r} s_i^2)."""
    step = first_step_operator(matrix, gradient.Vh[:rank], gradient.U[:, rank : 2 * rank])
    return float((step - matrix).norm()) / tail_norm(reference_svd(matrix).S, 2 * rank)


def low_rank_batches(d_out, d_in, rank, count, *, seed=0, dtype=torch.float32):
    gradient = planted(d_out, d_in, seed=seed, values=1.0 / torch.arange(1, rank + 1))
    return micro_batches(gradient, count, tokens=max(3, -(-rank // count)), seed=seed + 1, dtype=dtype)


# ---- the reference


@given(
    st.integers(1, 128),
    st.integers(1, 128),
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from(DTYPES),
    st.integers(0, 10_000),
)
def test_all_sums_are_the_weighted_float64_sum_where_the_columns_hold_its_rank(d_out, d_in, rank, count, dtype, seed):
    rank = min(rank, d_out, d_in)
    batches = low_rank_batches(d_out, d_in, rank, count, seed=seed, dtype=dtype)
    tokens = sum(len(X) for X, _ in batches)  # rounding to bfloat16 makes the rank as large
    weights = [float(3 * i + 1) for i in range(count)]
    mean = dense_sum(batches, weights) / sum(weights)
    for add in SUMS:
        gradient = add(batches, tokens, weights=weights, loss_terms=sum(weights))
        assert gradient.columns == min(tokens, d_out, d_in)
        assert gradient.shape == (d_out, d_in)
        assert {factor.dtype for factor in (gradient.U, gradient.S, gradient.Vh)} == {torch.float32}
        assert relative_error(dense(gradient), mean) <= 1e-4
        assert gradient.loss_terms == sum(weights)
        assert gradient.tail <= 1e-4 * gradient.norm


@pytest.mark.parametrize("shape", SHAPES)
def test_the_held_matrix_is_exact_on_a_full_spectrum(shape):
    batches = micro_batches(planted(*shape), 8, tokens=16, noise=0.5)
    matrix = dense_sum(batches)
    gradient, reference = hold(batches), reference_svd(matrix)
    assert gradient.columns == 16
    assert torch.allclose(gradient.S.double(), reference.S[:16], rtol=1e-5)
    assert gradient.tail == pytest.approx(tail_norm(reference.S, 16), rel=1e-5)
    assert residual_over_optimum(gradient, matrix) <= 1.0001


# ---- Theorem 3.1's residual for the streaming sum


def residuals(count, **keywords):
    """Over shapes and seeds: micro-batches that share a falling spectrum, each with as falling a noise of its own."""
    found = []
    for shape in SHAPES:
        for seed in range(3):
            batches = micro_batches(planted(*shape, seed=seed), count, tokens=16, seed=seed + 1, noise=0.5)
            found.append(residual_over_optimum(stream(batches, seed=seed, **keywords), dense_sum(batches)))
    return found


@pytest.mark.parametrize("count", [8, 64])
def test_the_residual_is_within_a_percent_of_the_optimum(count):
    found = residuals(count)
    assert min(found) >= 1 - 1e-6
    assert statistics.median(found) <= 1.01
    assert max(found) <= 1.02


def test_the_residual_falls_with_more_columns():
    few, default, many = (statistics.median(residuals(8, columns=per_rank * RANK)) for per_rank in (2, 4, 8))
    assert many <= 1.001
    assert many < default < few <= 1.01


def test_the_residual_falls_with_a_subspace_iteration():
    assert statistics.median(residuals(8, iterations=1)) < statistics.median(residuals(8))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_held_matrix_whose_triplets_are_sought_is_near_the_optimum_and_knows_its_tail(shape):
    batches = micro_batches(planted(*shape), 8, tokens=16, noise=0.5)
    matrix = dense_sum(batches)
    gradient = hold_and_seek(batches, columns=8)
    assert residual_over_optimum(gradient, matrix) <= 1.01
    assert gradient.tail == pytest.approx(float((matrix - dense(gradient)).norm()), rel=1e-4)


def test_a_direction_that_only_a_late_batch_has_is_found():
    early = micro_batches(planted(96, 128, values=torch.ones(1), seed=3), 7, tokens=16, seed=4)
    late = micro_batches(planted(96, 128, values=torch.tensor([0.5, 0.4, 0.3]), seed=5), 1, tokens=16, seed=6)
    matrix = dense_sum([*early, *late])
    assert relative_error(dense(stream([*early, *late], columns=4)), matrix) <= 1e-4


def test_what_only_the_first_batch_has_gives_way_to_what_all_others_have():
    first = micro_batches(planted(32, 32, seed=3, values=torch.full((24,), 0.02)), 1, tokens=24, seed=4)
    others = micro_batches(planted(64, 96, seed=5), 16, tokens=16, seed=6, noise=0.5)
    # in rows and columns of their own, where no power step turns the first batch's directions towards the others
    padded = [(pad(X, (96, 0)), pad(dY, (64, 0))) for X, dY in first] + [
        (pad(X, (0, 32)), pad(dY, (0, 32))) for X, dY in others
    ]
    assert residual_over_optimum(stream(padded), dense_sum(padded)) <= 1.01


# ---- properties


@pytest.mark.parametrize("shape", SHAPES)
def test_the_streamed_factors_are_orthonormal_falling_and_signed(shape):
    gradient = stream(micro_batches(planted(*shape), 8, tokens=16, noise=0.5))
    assert gradient.columns == 16
    for basis in (gradient.U, gradient.Vh.T):
        squared = projector(basis) @ projector(basis)
        assert relative_error(squared, projector(basis)) <= 1e-5
        assert float(projector(basis).trace()) == pytest.approx(16, rel=1e-5)
    assert (gradient.S.diff() < 0).all()
    assert (gradient.Vh.gather(1, gradient.Vh.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 8, 32])
def test_the_streamed_factors_are_near_the_eckart_young_optimum(shape, count):
    batches = micro_batches(planted(*shape), count, tokens=-(-128 // count), noise=0.5)
    matrix = dense_sum(batches)
    error, optimum = float((matrix - dense(stream(batches))).norm()), tail_norm(reference_svd(matrix).S, 16)
    assert optimum * (1 - 1e-6) <= error <= 1.12 * optimum


# ---- what is left out


def true_and_estimated_tails(shape, seeds, **keywords):
    batches = micro_batches(planted(*shape), 8, tokens=16, noise=0.5)
    matrix = dense_sum(batches)
    for seed in seeds:
        gradient = stream(batches, seed=seed, **keywords)
        yield float((matrix - dense(gradient)).norm()), gradient


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tail_is_within_a_factor_of_one_and_a_half_and_without_bias(shape):
    tails = [(true, gradient.tail) for true, gradient in true_and_estimated_tails(shape, range(20))]
    assert all(2 / 3 <= estimated / true <= 1.5 for true, estimated in tails)
    assert statistics.mean((estimated / true) ** 2 for true, estimated in tails) == pytest.approx(1, abs=0.1)


def test_the_norm_is_that_of_the_whole_gradient():
    matrix = dense_sum(micro_batches(planted(96, 128), 8, tokens=16, noise=0.5))
    for _, gradient in true_and_estimated_tails((96, 128), range(3)):
        assert gradient.norm == pytest.approx(float(matrix.norm()), rel=0.02)


def test_the_tail_is_that_of_the_mean():
    (_, whole), (_, mean) = (
        next(true_and_estimated_tails((96, 128), [0], loss_terms=loss_terms)) for loss_terms in (1.0, 50.0)
    )
    assert mean.tail == pytest.approx(whole.tail / 50, rel=1e-5)
    assert torch.allclose(mean.S, whole.S / 50, rtol=1e-5)


# ---- invariances


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("add", SUMS)
def test_the_losss_scale_leaves_the_first_step_where_it_is(add, scale):
    batches = micro_batches(planted(96, 128), 8, tokens=16, noise=0.5)
    matrix = dense_sum(batches)
    one, scaled = add(batches), add([(X, scale * dY) for X, dY in batches])
    steps = [first_step_operator(matrix, g.Vh[:RANK], g.U[:, RANK : 2 * RANK]) for g in (one, scaled)]
    assert relative_error(steps[1], steps[0]) <= 1e-3
    assert relative_error(projector(scaled.Vh[:RANK].T), projector(one.Vh[:RANK].T)) <= 1e-3
    assert torch.allclose(scaled.S, scale * one.S, rtol=1e-4)
    assert scaled.tail == pytest.approx(scale * one.tail, rel=1e-3)


@pytest.mark.parametrize("add", SUMS)
@given(st.permutations(range(6)), st.integers(0, 100))
def test_the_order_of_batches_does_not_matter(add, order, seed):
    batches = low_rank_batches(40, 60, 12, 6, seed=seed)
    weights = [float(i + 1) for i in range(6)]
    straight = add(batches, weights=weights)
    shuffled = add([batches[i] for i in order], weights=[weights[i] for i in order])
    assert relative_error(dense(shuffled), dense(straight)) <= 1e-4


@pytest.mark.parametrize("add", SUMS)
@given(st.lists(st.integers(1, 23), min_size=1, max_size=5, unique=True), st.integers(0, 100))
def test_splitting_a_batch_does_not_matter(add, cuts, seed):
    [(X, dY)] = micro_batches(planted(40, 60, seed=seed, values=1.0 / torch.arange(1, 13)), 1, tokens=24, seed=seed)
    parts = list(zip(X.tensor_split(sorted(cuts)), dY.tensor_split(sorted(cuts)), strict=True))
    assert len(parts) == len(cuts) + 1
    whole, split = add([(X, dY)], weights=[3.0]), add(parts, weights=[3.0] * len(parts))
    assert relative_error(dense(split), dense(whole)) <= 1e-4


@pytest.mark.parametrize("count", [2, 8])
def test_order_and_splitting_keep_the_residual_where_columns_are_cut(count):
    batches = micro_batches(planted(96, 128), count, tokens=-(-128 // count), noise=0.5)
    halves = [part for X, dY in batches for part in ((X[::2], dY[::2]), (X[1::2], dY[1::2]))]
    for variant in (batches[::-1], halves, halves[::-1]):
        assert residual_over_optimum(stream(variant), dense_sum(batches)) <= 1.02


@pytest.mark.parametrize("add", SUMS)
def test_swapping_inputs_and_output_gradients_transposes_the_gradient(add):
    batches = low_rank_batches(40, 60, 12, 6)
    straight, turned = add(batches), add([(dY, X) for X, dY in batches])
    assert turned.shape == (60, 40)
    assert relative_error(dense(turned).T, dense(straight)) <= 1e-4


def test_a_call_without_tokens_changes_nothing():
    batches = low_rank_batches(40, 60, 12, 6)
    idle = (torch.zeros(0, 60), torch.zeros(0, 40))
    for add in SUMS:
        assert relative_error(dense(add([idle, *batches, idle])), dense(add(batches))) <= 1e-4


# ---- repetition


def test_a_seed_repeats_bit_for_bit_whatever_the_global_random_state():
    batches = micro_batches(planted(96, 128), 8, tokens=16, noise=0.5)
    torch.manual_seed(1)
    one = stream(batches, seed=5)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = stream(batches, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in ((one.U, two.U), (one.S, two.S), (one.Vh, two.Vh)))
    assert one.tail == two.tail
    other = stream(batches, seed=6)
    assert not torch.equal(one.U, other.U)
    assert relative_error(projector(other.Vh[:RANK].T), projector(one.Vh[:RANK].T)) <= 0.05


def test_the_held_matrix_repeats_bit_for_bit():
    batches = micro_batches(planted(96, 128), 8, tokens=16, noise=0.5)
    one, two = hold(batches), hold(batches)
    assert all(torch.equal(a, b) for a, b in ((one.U, two.U), (one.S, two.S), (one.Vh, two.Vh)))


@pytest.mark.parametrize("add", SUMS)
def test_what_was_added_is_left_as_it_was(add):
    batches = low_rank_batches(40, 60, 12, 3)
    copies = [(X.clone(), dY.clone()) for X, dY in batches]
    add(batches, weights=[2.0, 3.0, 4.0])
    assert all(torch.equal(a, b) for pair in zip(batches, copies, strict=True) for a, b in zip(*pair, strict=True))


# ---- refusals and the choice between the two


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("accumulator", [FactorAccumulator, MatrixAccumulator])
@given(st.integers(0, 2), st.sampled_from(["inputs", "output gradients"]), st.data())
def test_a_value_that_is_not_finite_is_refused_with_the_batch_that_has_it(accumulator, bad, index, side, data):
    batches = micro_batches(planted(12, 17), 3, tokens=5)
    tensor = batches[index][0 if side == "inputs" else 1]
    tensor[data.draw(st.integers(0, 4)), data.draw(st.integers(0, tensor.shape[1] - 1))] = bad
    second = layer_generator(0, "layer") if accumulator is FactorAccumulator else torch.device("cpu")
    under_way = accumulator(8, second)
    for X, dY in batches[:index]:
        under_way.add(X, dY, 1.0)
    with pytest.raises(GradientError, match="not finite"):
        under_way.add(*batches[index], 1.0)


def test_a_sum_that_overflows_is_refused():
    batches = [(X, 1e38 * dY) for X, dY in micro_batches(planted(12, 17, scale=100.0), 3, tokens=5)]
    for add in SUMS:
        with pytest.raises(GradientError, match="not finite"):
            add(batches)


@given(st.integers(1, 1300), st.integers(1, 1300), st.integers(1, 300))
@example(64, 64, 32)  # as large
@example(64, 64, 31)
@example(1024, 1024, 64)
@example(1024, 1024, 63)
@example(1025, 1024, 64)
def test_a_matrix_is_held_where_it_is_no_larger_than_its_factors_or_soon_formed(d_out, d_in, columns):
    matrix = torch.empty(d_out, d_in, device="meta")
    factors = (torch.empty(d_out, columns, device="meta"), torch.empty(columns, d_in, device="meta"))
    is_small = matrix.numel() <= sum(factor.numel() for factor in factors)
    is_narrow = 4 * matrix.numel() <= 4 * 2**20 and columns >= 64
    assert holds_matrix(d_out, d_in, columns) == (is_small or is_narrow)
