"""Tests of the low-rank algebra against torch's own decomposition in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from loraga import GradientError, LowRankGradient
from loraga.gradient import (
    Matrix,
    Product,
    factor_matrix,
    factor_product,
    factor_projection,
    factor_sum,
    layer_generator,
    leading_directions,
    project_sum,
    random_directions,
    require_finite,
    times,
    transpose_times,
)
from tests.planted import Planted, orthonormal, planted, projector, reference_svd, tail_norm

ROUNDING = 2e-5  # float32 decompositions of up to 128 x 128, over the largest singular value
DTYPES = (torch.float32, torch.bfloat16, torch.float64)

sizes = st.integers(1, 128)
seeds = st.integers(0, 2**31)
scales = st.sampled_from([1e-3, 1.0, 1e3])


@st.composite
def gradients(draw, minimum=1):
    """Tall, wide and square; of full rank, rank-deficient, with repeated singular values, and zero."""
    d_out, d_in = draw(st.integers(minimum, 128)), draw(st.integers(minimum, 128))
    smallest = min(d_out, d_in)
    kind = draw(st.sampled_from(["full", "full", "deficient", "repeated", "zero"]))
    values = {
        "full": None,
        "deficient": 1.0 / torch.arange(1, max(1, smallest // 2) + 1),
        "repeated": 1.0 / (torch.arange(smallest) // 3 + 1),
        "zero": torch.zeros(1),
    }[kind]
    return planted(d_out, d_in, seed=draw(seeds), values=values, scale=draw(scales))


def dense(gradient):
    return gradient.U.double() @ (gradient.S.double()[:, None] * gradient.Vh.double())


def largest(matrix):
    return max(float(torch.linalg.matrix_norm(matrix.double(), 2)), 1e-30)


def assert_close(actual, expected, bound):
    error = float((actual.double() - expected.double()).norm())
    assert error <= bound, f"{error:.3g} > {bound:.3g}"


def assert_factors_well_formed(gradient, columns):
    """Orthonormal columns, falling values, the sign rule, float32, and nothing else."""
    d_out, d_in = gradient.shape
    assert gradient.U.shape == (d_out, columns)
    assert gradient.S.shape == (columns,)
    assert gradient.Vh.shape == (columns, d_in)
    assert {factor.dtype for factor in (gradient.U, gradient.S, gradient.Vh)} == {torch.float32}
    for basis in (gradient.U, gradient.Vh.T):
        identity = torch.diag(torch.full((columns,), 1.0, dtype=torch.float64))
        assert_close(basis.double().T @ basis.double(), identity, ROUNDING * max(1, columns) ** 0.5)
    assert (gradient.S >= 0).all()
    assert (gradient.S.diff() <= 0).all()
    assert (gradient.Vh.gather(1, gradient.Vh.abs().argmax(1, keepdim=True)) > 0).all()


# ---- factor_matrix


@given(gradients(), st.sampled_from(DTYPES))
def test_factor_matrix_agrees_with_the_float64_decomposition(gradient, dtype):
    matrix = gradient.matrix.to(dtype)
    factored, reference = factor_matrix(matrix, loss_terms=7), reference_svd(matrix)
    assert_factors_well_formed(factored, min(matrix.shape))
    unit = largest(matrix)
    assert float((factored.S - reference.S).abs().max()) <= ROUNDING * unit
    assert_close(dense(factored), matrix, ROUNDING * unit * math.sqrt(min(matrix.shape)))
    assert (factored.tail, factored.loss_terms) == (0.0, 7.0)
    assert factored.shape == tuple(matrix.shape)
    assert factored.norm == pytest.approx(float(matrix.double().norm()), rel=1e-5, abs=1e-30)


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (64, 64)])
def test_factor_matrix_finds_the_planted_vectors_with_their_sign(shape):
    gradient = planted(*shape, seed=3)
    factored = factor_matrix(gradient.matrix, 1)
    signs = gradient.Vh.gather(1, gradient.Vh.abs().argmax(1, keepdim=True)).sign()
    for row in range(8):  # well separated
        assert_close(factored.Vh[row], signs[row] * gradient.Vh[row], 1e-4)
        assert_close(factored.U[:, row], signs[row] * gradient.U[:, row], 1e-4)


@given(gradients(minimum=2), st.data())
def test_factor_matrix_of_the_transpose_swaps_the_bases(gradient, data):
    straight, turned = factor_matrix(gradient.matrix, 1), factor_matrix(gradient.matrix.T, 1)
    assert float((straight.S - turned.S).abs().max()) <= ROUNDING * largest(gradient.matrix)
    assert_close(dense(straight), dense(turned).T, ROUNDING * largest(gradient.matrix) * math.sqrt(len(straight.S)))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_factor_matrix_of_a_scaled_gradient_keeps_the_subspaces(scale):
    gradient = planted(60, 90, seed=4)
    one, scaled = factor_matrix(gradient.matrix, 1), factor_matrix(scale * gradient.matrix, 1)
    assert torch.allclose(scaled.S, scale * one.S, rtol=1e-4)
    assert_close(projector(scaled.U[:, :8]), projector(one.U[:, :8]), 1e-3)
    assert_close(projector(scaled.Vh[:8].T), projector(one.Vh[:8].T), 1e-3)


def test_factor_matrix_repeats_bit_for_bit():
    matrix = planted(70, 50, seed=5).matrix
    one, two = factor_matrix(matrix, 1), factor_matrix(matrix.clone(), 1)
    assert all(torch.equal(a, b) for a, b in ((one.U, two.U), (one.S, two.S), (one.Vh, two.Vh)))


# ---- factor_product


@given(gradients(), st.integers(1, 40), seeds)
@example(planted(5, 3, seed=1), 40, 1)
@example(planted(1, 1, seed=1), 1, 1)
def test_factor_product_agrees_with_the_float64_decomposition(gradient, inner, seed):
    generator = torch.Generator().manual_seed(seed)
    left = (gradient.matrix @ torch.randn(gradient.Vh.shape[1], inner, generator=generator).double()).float()
    right = torch.randn(inner, gradient.Vh.shape[1], generator=generator)
    product = left.double() @ right.double()
    factored, reference = factor_product(left, right, 3), reference_svd(product)
    columns = min(*product.shape, inner)
    assert_factors_well_formed(factored, columns)
    unit = max(largest(left) * largest(right), 1e-30)  # an exact product cancels no better than this
    assert float((factored.S - reference.S[:columns]).abs().max()) <= ROUNDING * unit
    assert_close(dense(factored), product, ROUNDING * unit * math.sqrt(columns))
    assert (factored.tail, factored.loss_terms) == (0.0, 3.0)


def test_factor_product_repeats_bit_for_bit():
    gradient = planted(70, 50, seed=5)
    left, right = (gradient.U * gradient.S).float(), gradient.Vh.float()
    one, two = factor_product(left, right, 1), factor_product(left.clone(), right.clone(), 1)
    assert all(torch.equal(a, b) for a, b in ((one.U, two.U), (one.S, two.S), (one.Vh, two.Vh)))


@given(gradients(), st.integers(1, 40), seeds)
def test_factor_projection_agrees_with_the_float64_decomposition(gradient, width, seed):
    generator = torch.Generator().manual_seed(seed)
    d_out, d_in = gradient.matrix.shape
    width = min(width, d_in, d_out)
    right = torch.linalg.qr(torch.randn(d_in, width, generator=generator)).Q.T
    left = gradient.matrix.float() @ right.T
    factored, reference = factor_projection(Product(left, right), 3), reference_svd(left.double() @ right.double())
    assert_factors_well_formed(factored, width)
    unit = max(largest(left), 1e-30)
    assert float((factored.S - reference.S[:width]).abs().max()) <= ROUNDING * unit
    assert_close(dense(factored), left.double() @ right.double(), ROUNDING * unit * math.sqrt(width))
    assert (factored.tail, factored.loss_terms) == (0.0, 3.0)


# ---- implicit sums


def summands(d_out, d_in, count, inner, seed):
    """Products of which each is a planted gradient of rank `inner`; their sum has rank count * inner at most."""
    parts = [planted(d_out, d_in, seed=seed + i, values=1.0 / torch.arange(1, inner + 1)) for i in range(count)]
    products = [Product(left=(part.U * part.S).float(), right=part.Vh.float()) for part in parts]
    return products, sum(product.left.double() @ product.right.double() for product in products)


def found(products, columns, iterations=0, *, seed=0, loss_terms=1):
    """The triplets that a range finder gives which begins at random directions."""
    d_in = products[0].right.shape[1]
    directions = random_directions(d_in, columns, layer_generator(seed, "layer"), torch.device("cpu"))
    return factor_sum(products, times(products, directions), loss_terms, iterations)


@given(st.integers(4, 128), st.integers(4, 128), st.integers(1, 5), st.integers(1, 4), seeds)
def test_products_with_an_implicit_sum_agree_with_the_dense_ones(d_out, d_in, count, inner, seed):
    products, matrix = summands(d_out, d_in, count, inner, seed % 10_000)
    generator = torch.Generator().manual_seed(seed)
    right, left = torch.randn(d_in, 3, generator=generator), torch.randn(d_out, 3, generator=generator)
    assert_close(times(products, right), matrix @ right.double(), 1e-5 * count * float(right.norm()))
    assert_close(transpose_times(products, left), matrix.T @ left.double(), 1e-5 * count * float(left.norm()))
    scaled = [replace(product, scale=3.0) for product in products] + [Matrix(matrix.float())]
    assert_close(times(scaled, right), 4 * matrix @ right.double(), 1e-4 * count * float(right.norm()))
    assert_close(transpose_times(scaled, left), 4 * matrix.T @ left.double(), 1e-4 * count * float(left.norm()))


@given(st.integers(4, 128), st.integers(4, 128), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), seeds)
def test_factor_sum_is_exact_where_the_columns_hold_the_rank(d_out, d_in, count, inner, iterations, seed):
    products, matrix = summands(d_out, d_in, count, inner, seed % 10_000)
    columns = count * inner
    factored = found(products, columns, iterations, seed=seed, loss_terms=5)
    kept = min(columns, d_out, d_in)
    assert_factors_well_formed(factored, kept)
    assert float((factored.S - reference_svd(matrix).S[:kept]).abs().max()) <= 10 * ROUNDING * largest(matrix)
    assert_close(dense(factored), matrix, 10 * ROUNDING * largest(matrix))
    assert (factored.tail, factored.loss_terms) == (0.0, 5.0)


@pytest.mark.parametrize("shape", [(96, 128), (128, 96), (64, 64)])
@pytest.mark.parametrize("seed", range(3))
def test_factor_sum_is_near_the_eckart_young_optimum_on_a_falling_spectrum(shape, seed):
    gradient = planted(*shape, seed=seed)
    left, right = (gradient.U * gradient.S).float(), gradient.Vh.float()
    products = [Product(left[:, ::2], right[::2]), Product(left[:, 1::2], right[1::2])]
    optimum = tail_norm(gradient.S, 16)
    residuals = [
        float((gradient.matrix - dense(found(products, 16, iterations, seed=seed))).norm()) for iterations in (0, 1, 4)
    ]
    assert residuals[1] <= 1.15 * optimum
    assert residuals[2] <= 1.02 * optimum
    assert residuals == sorted(residuals, reverse=True)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40)])
def test_factor_sum_of_the_transpose_and_of_another_order_is_the_same_value(shape):
    products, matrix = summands(*shape, count=3, inner=4, seed=9)
    straight = found(products, 12)
    turned = found([Product(product.right.T, product.left.T) for product in products], 12)
    other_order = found(products[::-1], 12)
    assert_close(dense(turned).T, dense(straight), 1e-4 * largest(matrix))
    assert_close(dense(other_order), dense(straight), 1e-4 * largest(matrix))


@given(st.integers(4, 96), st.integers(4, 96), st.integers(1, 24), seeds)
def test_a_projection_is_the_sum_on_an_orthonormal_right_basis(d_out, d_in, columns, seed):
    products, matrix = summands(d_out, d_in, 2, 4, seed % 10_000)
    sketch = times(products, random_directions(d_in, columns, layer_generator(seed, "l"), torch.device("cpu")))
    projected = project_sum(products, sketch)
    assert projected.right.shape == (min(columns, d_out, d_in), d_in)
    basis = projected.right.double().T
    identity = torch.diag(torch.full((basis.shape[1],), 1.0, dtype=torch.float64))
    assert_close(basis.T @ basis, identity, ROUNDING * basis.shape[1] ** 0.5)
    assert_close(projected.left, matrix @ basis, ROUNDING * largest(matrix) * basis.shape[1] ** 0.5)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40)])
def test_leading_directions_are_the_projections_right_singular_vectors_down_to_small_values(shape):
    gradient = planted(*shape, seed=2, values=10.0 ** -torch.arange(7))
    projected = project_sum([Product((gradient.U * gradient.S).float(), gradient.Vh.float())], gradient.matrix.float())
    directions = leading_directions(projected, 5)
    reference = reference_svd(projected.left.double() @ projected.right.double())
    assert directions.shape == (shape[1], 5)
    assert_close((directions.double() * reference.Vh[:5].T).sum(0).abs(), torch.ones(5), 1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_factor_sum_of_a_scaled_sum_keeps_the_subspaces(scale):
    gradient = planted(60, 90, seed=4)
    left, right = (gradient.U * gradient.S).float(), gradient.Vh.float()
    one = found([Product(left, right)], 16)
    scaled = found([Product(scale * left, right)], 16)
    assert torch.allclose(scaled.S, scale * one.S, rtol=1e-4)
    assert_close(projector(scaled.U[:, :8]), projector(one.U[:, :8]), 1e-3)


def test_factor_sum_repeats_bit_for_bit_whatever_the_global_random_state():
    products, _ = summands(80, 60, count=3, inner=6, seed=2)
    torch.manual_seed(1)
    one = found(products, 8, seed=11)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = found(products, 8, seed=11)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in ((one.U, two.U), (one.S, two.S), (one.Vh, two.Vh)))
    other = found(products, 8, seed=12)
    assert not torch.equal(one.U, other.U)  # 8 of 18 directions: the draw shows


def test_a_zero_sum_has_orthonormal_factors_and_no_direction():
    products = [Product(left=torch.zeros(20, 3), right=torch.zeros(3, 30))]
    factored = found(products, 6)
    assert_factors_well_formed(factored, 6)
    assert factored.directions == 0
    assert factored.norm == 0


# ---- values that are not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@given(data=st.data())
def test_a_value_that_is_not_finite_is_refused_wherever_it_is(bad, data):
    d_out, d_in = data.draw(sizes), data.draw(sizes)
    gradient = planted(d_out, d_in, seed=1)
    left, right = (gradient.U * gradient.S).float(), gradient.Vh.float()
    matrix = gradient.matrix.float()
    place = data.draw(st.sampled_from(["left", "right"]))
    spoilt = {"left": left, "right": right}[place]
    for tensor in (matrix, spoilt):
        row, column = (data.draw(st.integers(0, size - 1)) for size in tensor.shape)
        tensor[row, column] = bad
    with pytest.raises(GradientError, match="not finite"):
        require_finite(matrix)
    with pytest.raises(GradientError, match="not finite"):
        factor_matrix(matrix, 1)
    with pytest.raises(GradientError, match="not finite"):
        factor_product(left, right, 1)
    with pytest.raises(GradientError, match="not finite"):
        found([Product(left, right)], 4)


def test_finite_values_pass():
    require_finite(planted(3, 4, scale=1e30).matrix)
    require_finite(torch.full((3, 4), 3e38))  # whose sum is not


# ---- a LowRankGradient's own facts


@given(gradients(), st.integers(0, 140))
def test_truncation_is_eckart_young_and_the_tail_says_what_it_costs(gradient, kept):
    whole = factor_matrix(gradient.matrix, 2)
    cut = whole.truncate(kept)
    unit = largest(gradient.matrix) * math.sqrt(len(whole.S))
    assert cut.columns == min(kept, len(whole.S))
    assert cut.tail == pytest.approx(tail_norm(reference_svd(gradient.matrix).S, kept), rel=1e-4, abs=ROUNDING * unit)
    assert_close(torch.as_tensor(cut.tail), (gradient.matrix - dense(cut)).norm(), 2 * ROUNDING * unit)
    assert cut.norm == pytest.approx(whole.norm, rel=1e-5)
    assert cut.loss_terms == 2


def test_truncating_twice_adds_the_tails_in_quadrature():
    whole = factor_matrix(planted(40, 30, seed=6).matrix, 1)
    once, twice = whole.truncate(5), whole.truncate(12).truncate(5)
    assert twice.tail == pytest.approx(once.tail, rel=1e-6)
    assert torch.equal(once.S, twice.S)


@given(gradients(), st.integers(0, 140))
def test_coverage_is_the_share_of_the_squared_norm(gradient, columns):
    S = gradient.S
    total = float(S.square().sum())
    expected = float(S[:columns].square().sum()) / total if total else 0.0
    whole = factor_matrix(gradient.matrix, 1)
    assert whole.coverage(columns) == pytest.approx(expected, abs=1e-4)
    kept = min(columns + 3, whole.columns)  # the tail counts, whether its vectors are held or not
    assert whole.truncate(kept).coverage(columns) == pytest.approx(expected, abs=1e-4)


@given(st.integers(2, 128), st.integers(2, 128), st.data(), scales)
def test_directions_are_the_rank_that_torch_finds(d_out, d_in, data, scale):
    rank = data.draw(st.integers(0, min(d_out, d_in)))
    gradient = planted(d_out, d_in, seed=1, values=torch.logspace(0, -2, rank) if rank else torch.zeros(1), scale=scale)
    factored = factor_matrix(gradient.matrix, 1)
    assert factored.directions == rank
    assert factored.directions == int(torch.linalg.matrix_rank(gradient.matrix.float()))
    assert factored.truncate(1).directions == min(rank, 1)
    assert factored.truncate(0).directions == 0


def test_moving_to_a_device_moves_all_factors_and_keeps_the_facts():
    gradient = factor_matrix(planted(12, 9).matrix, 4).truncate(3)
    moved = gradient.to("meta")
    assert {factor.device.type for factor in (moved.U, moved.S, moved.Vh)} == {"meta"}
    assert (moved.tail, moved.loss_terms, moved.shape) == (gradient.tail, 4.0, (12, 9))


# ---- merge


def pair(seed, columns=(6, 9), terms=(3.0, 11.0), shape=(50, 70)):
    """Two gradients whose factors are known, with tails."""
    parts = [planted(*shape, seed=seed + i) for i in (0, 1)]
    factored = [factor_matrix(part.matrix, t).truncate(k) for part, k, t in zip(parts, columns, terms, strict=True)]
    return factored, [dense(gradient) for gradient in factored]


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 30), st.floats(0.5, 1e5), st.floats(0.5, 1e5))
def test_merge_weighs_by_loss_terms(seed, k_one, k_two, n_one, n_two):
    (one, two), (G_one, G_two) = pair(seed, (k_one, k_two), (n_one, n_two), (25, 40))
    one, two = replace(one, tail=0.0), replace(two, tail=0.0)
    mean = (n_one * G_one + n_two * G_two) / (n_one + n_two)
    merged, reference = one.merge(two), reference_svd(mean)
    columns = min(25, max(k_one, k_two))
    assert_factors_well_formed(merged, columns)
    assert float((merged.S - reference.S[:columns]).abs().max()) <= ROUNDING
    assert merged.tail == pytest.approx(tail_norm(reference.S, columns), abs=1e-4)
    assert_close(torch.as_tensor(merged.tail), (mean - dense(merged)).norm(), 1e-4)
    assert merged.loss_terms == pytest.approx(n_one + n_two)


def test_merge_adds_the_tails_of_different_examples_in_quadrature():
    (one, two), _ = pair(1, columns=(4, 20))
    one = one.truncate(0)  # nothing of it is left to be cut a second time
    merged = one.merge(two)
    assert merged.tail == pytest.approx(math.hypot(3 / 14 * one.tail, 11 / 14 * two.tail), rel=1e-5)


def test_merge_adds_what_it_cuts_to_the_tail():
    (one, two), (G_one, G_two) = pair(2)
    merged = one.merge(two)
    cut = tail_norm(reference_svd((3 * G_one + 11 * G_two) / 14).S, 9)
    assert cut > 0.05
    assert merged.tail == pytest.approx(math.hypot(3 / 14 * one.tail, 11 / 14 * two.tail, cut), rel=1e-4)


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12))
def test_merge_is_commutative_to_rounding(seed, k_one, k_two):
    (one, two), _ = pair(seed, (k_one, k_two), shape=(25, 40))
    forth, back = one.merge(two), two.merge(one)
    assert forth.columns == back.columns
    assert float((forth.S - back.S).abs().max()) <= ROUNDING
    assert forth.tail == pytest.approx(back.tail, rel=1e-4)
    assert forth.loss_terms == back.loss_terms
    assert_close(dense(forth), dense(back), 1e-4)


@given(st.integers(0, 1000), st.integers(1, 16))
def test_merge_is_associative_up_to_what_it_cuts(seed, columns):
    """Each way is off by its two cuts at most, hence by sqrt(2) times the tail that it reports."""
    terms = (2.0, 7.0, 5.0)
    parts = [
        replace(factor_matrix(planted(25, 40, seed=seed + i).matrix, n).truncate(columns), tail=0.0)
        for i, n in enumerate(terms)
    ]
    one, two = parts[0].merge(parts[1]).merge(parts[2]), parts[0].merge(parts[1].merge(parts[2]))
    assert one.loss_terms == two.loss_terms == 14
    assert_close(dense(one), dense(two), math.sqrt(2) * (one.tail + two.tail) + 1e-5)
    mean = sum(n * dense(part) for n, part in zip(terms, parts, strict=True)) / 14
    assert_close(dense(one), mean, math.sqrt(2) * one.tail + 1e-5)


def test_merge_is_associative_to_rounding_where_nothing_is_cut():
    basis = planted(50, 70, seed=3)
    parts = [
        factor_matrix(basis.U[:, :12] @ orthonormal(12, 12, torch.Generator().manual_seed(i)) @ basis.Vh[:12], n)
        for i, n in enumerate((2.0, 7.0, 5.0))
    ]
    parts = [part.truncate(12) for part in parts]
    one, two = parts[0].merge(parts[1]).merge(parts[2]), parts[0].merge(parts[1].merge(parts[2]))
    assert one.tail <= 1e-4
    assert_close(dense(one), dense(two), 1e-4)


def test_merging_a_gradient_with_itself_keeps_it():
    gradient = factor_matrix(planted(30, 45, seed=8).matrix, 6).truncate(10)
    merged = gradient.merge(gradient)
    assert_close(dense(merged), dense(gradient), 1e-5)
    assert merged.loss_terms == 12


def test_merge_repeats_bit_for_bit():
    (one, two), _ = pair(4)
    first, second = one.merge(two), one.merge(two)
    assert all(torch.equal(a, b) for a, b in ((first.U, second.U), (first.S, second.S), (first.Vh, second.Vh)))


def test_merge_refuses_another_shape():
    one, two = (factor_matrix(planted(*shape).matrix, 1) for shape in ((8, 9), (9, 8)))
    with pytest.raises(GradientError, match=r"cannot merge gradients of shapes \(8, 9\) and \(9, 8\)"):
        one.merge(two)


# ---- private random sources


def test_a_layers_generator_depends_on_the_seed_and_the_layer_only():
    def draw(seed, layer):
        return torch.randn(4, generator=layer_generator(seed, layer))

    torch.manual_seed(0)
    first = draw(3, "model.layers.0")
    torch.manual_seed(1)
    assert torch.equal(draw(3, "model.layers.0"), first)
    assert not torch.equal(draw(4, "model.layers.0"), first)
    assert not torch.equal(draw(3, "model.layers.1"), first)
    assert layer_generator(3, "model.layers.0").device.type == "cpu"


def test_a_layers_generator_is_the_same_in_every_process_and_version():
    """Half the first 8 bytes of sha256("3:model.layers.0"): gradients of a seed can be made again later."""
    assert layer_generator(3, "model.layers.0").initial_seed() == 1861642271270850841


def test_factors_of_a_planted_gradient_can_be_given_by_hand():
    gradient = planted(10, 14, seed=2)
    by_hand = LowRankGradient(
        U=gradient.U.float(), S=gradient.S.float(), Vh=gradient.Vh.float(), tail=0.0, loss_terms=1.0
    )
    assert isinstance(gradient, Planted)
    assert by_hand.norm == pytest.approx(float(gradient.S.norm()), rel=1e-6)
    assert (by_hand.columns, by_hand.shape) == (10, (10, 14))
