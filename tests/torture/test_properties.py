"""Properties of the gradient's algebra over generated shapes, spectra, dtypes, scales, splits, weights and orders.

Each is checked against float64, on up to 512 x 512; the ordinary run draws a few cases, the torture run hundreds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraga.accumulate import FactorAccumulator, MatrixAccumulator
from loraga.gradient import COLUMNS_PER_RANK, factor_matrix, factor_product, layer_generator
from loraga.report import first_step
from loraga.scheme import Factors
from tests.planted import dense_sum, first_step_operator, micro_batches, planted, reference_svd, tail_norm

ROUNDING = 2e-5  # of float32 decompositions, over the largest singular value and per root of the number of columns
SMALLEST = 2.0**-149  # what float32 cannot tell from zero
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

small, sizes = st.integers(1, 64), st.one_of(st.integers(1, 64), st.integers(1, 64), st.integers(65, 512))
shapes = st.one_of(st.tuples(sizes, small), st.tuples(small, sizes), st.tuples(sizes, sizes))
seeds = st.integers(0, 10_000)


@dataclass(frozen=True)
class Case:
    """A gradient with a known decomposition, in float64."""

    shape: tuple[int, int]
    spectrum: str
    scale: float
    seed: int

    @functools.cached_property
    def planted(self):
        smallest = min(self.shape)
        values = {
            "full": None,
            "deficient": 1.0 / torch.arange(1, max(1, smallest // 2) + 1),
            "repeated": 1.0 / (torch.arange(smallest) // 3 + 1),
            "equal": torch.ones(smallest),
            "steep": 10.0 ** -torch.arange(smallest).double(),
            "zero": torch.zeros(1),
        }[self.spectrum]
        return planted(*self.shape, seed=self.seed, values=values, scale=self.scale)


SPECTRA = ("full", "deficient", "repeated", "equal", "steep", "zero")
SCALES = (1e-38, 1e-30, 1e-8, 1.0, 1e8, 1e30)
cases = st.builds(Case, shapes, st.sampled_from(SPECTRA), st.sampled_from(SCALES), seeds)


def dense(gradient):
    return gradient.U.double() @ (gradient.S.double()[:, None] * gradient.Vh.double())


def norm(matrix):
    return float(torch.linalg.vector_norm(matrix.double()))


def rounding(matrix, columns):
    """What float32 cannot know of a matrix."""
    return (
        ROUNDING * float(torch.linalg.matrix_norm(matrix.double(), 2)) * math.sqrt(columns)
        + SMALLEST * 4 * max(matrix.shape) ** 2
    )


def require_sound(gradient):
    """Finite, orthonormal, falling, with finite facts."""
    for factor in (gradient.U, gradient.S, gradient.Vh):
        assert torch.isfinite(factor).all()
    for basis in (gradient.U, gradient.Vh.T):
        gram = basis.double().T @ basis.double()
        assert norm(gram - torch.diag(torch.ones(len(gram)).double())) <= ROUNDING * math.sqrt(gradient.columns)
    assert (gradient.S >= 0).all()
    assert (gradient.S.diff() <= 0).all()
    assert math.isfinite(gradient.norm)
    assert math.isfinite(gradient.tail)
    assert gradient.norm >= gradient.tail >= 0
    assert 0 <= gradient.coverage(gradient.columns) <= 1 + 1e-6
    assert 0 <= gradient.directions <= gradient.columns


# ---- one matrix


def a_decomposition_agrees_with_float64(data):
    case, dtype = data.draw(cases), data.draw(st.sampled_from(DTYPES))
    matrix = case.planted.matrix.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)
    whole, reference = factor_matrix(matrix, 3), reference_svd(matrix)
    require_sound(whole)
    assert norm(dense(whole) - matrix.double()) <= rounding(matrix, whole.columns)
    assert norm(whole.S - reference.S) <= rounding(matrix, whole.columns)
    assert whole.norm == pytest.approx(norm(matrix), rel=1e-5, abs=SMALLEST * matrix.numel())
    kept = data.draw(st.integers(0, whole.columns))
    cut = whole.truncate(kept)
    assert cut.tail == pytest.approx(tail_norm(reference.S, kept), rel=1e-4, abs=rounding(matrix, whole.columns))
    assert cut.norm == pytest.approx(whole.norm, rel=1e-6)
    assert cut.coverage(kept) == pytest.approx(1 - (cut.tail / cut.norm) ** 2 if cut.norm else 0, abs=1e-4)


def a_product_agrees_with_float64(data):
    case, inner = data.draw(cases), data.draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(case.seed)
    right = torch.randn(inner, case.shape[1], generator=generator)
    left = (case.planted.matrix @ torch.randn(case.shape[1], inner, generator=generator).double()).float()
    factored = factor_product(left, right, 1)
    require_sound(factored)
    unit = norm(left) * norm(right)  # an exact product cancels no better than this
    bound = ROUNDING * unit + SMALLEST * 4 * inner * max(case.shape) ** 2
    assert norm(dense(factored) - left.double() @ right.double()) <= bound


def a_start_has_a_finite_first_step(data):
    case, rank = data.draw(cases), data.draw(st.integers(1, 8))
    gradient = factor_matrix(case.planted.matrix, 1).truncate(COLUMNS_PER_RANK * rank)
    A, B = gradient.Vh[:rank], gradient.U[:, rank : 2 * rank]
    step = first_step(gradient, Factors(A=A, B=B), 1.0)
    matrix = case.planted.matrix
    if gradient.norm == 0:
        assert step.cosine is None
        return
    operator = first_step_operator(matrix, A, B)
    scale = norm(matrix)
    expected = float((operator / scale * (matrix / scale)).sum()) / max(norm(operator / scale), 1e-30)
    assert step.cosine == pytest.approx(expected, abs=2e-2 if case.scale < 1e-35 else 2e-4)
    assert step.relative_norm == pytest.approx(norm(operator / scale), rel=2e-2 if case.scale < 1e-35 else 1e-3)


# ---- merging


def merging_in_any_order_stays_within_the_stated_bound(data):
    """The bound in `LowRankGradient.merge`."""
    shape, scale, seed = data.draw(shapes), data.draw(st.sampled_from(SCALES)), data.draw(seeds)
    count = data.draw(st.integers(2, 5))
    terms = data.draw(st.lists(st.floats(0.5, 1e5), min_size=count, max_size=count))
    columns = data.draw(st.integers(1, 24))
    spectra = data.draw(st.lists(st.sampled_from(SPECTRA), min_size=count, max_size=count))
    parts = [
        factor_matrix(Case(shape, spectrum, scale, seed + i).planted.matrix, n).truncate(columns)
        for i, (spectrum, n) in enumerate(zip(spectra, terms, strict=True))
    ]
    order = data.draw(st.permutations(range(count)))
    straight = functools.reduce(lambda one, other: one.merge(other), parts)
    waiting = [parts[i] for i in order]
    while len(waiting) > 1:  # any neighbours first: any order, any brackets
        at = data.draw(st.integers(0, len(waiting) - 2))
        waiting[at : at + 2] = [waiting[at].merge(waiting[at + 1])]
    (other,) = waiting
    mean = sum(n * dense(part) for n, part in zip(terms, parts, strict=True)) / sum(terms)
    largest = max(part.norm for part in parts)
    exact = ROUNDING * math.sqrt(columns) * largest + SMALLEST * 16 * max(shape) ** 2
    for merged in (straight, other):
        require_sound(merged)
        assert merged.loss_terms == pytest.approx(sum(terms))
        assert norm(dense(merged) - mean) <= math.sqrt(count - 1) * merged.tail + exact
    bound = math.sqrt(count - 1) * (straight.tail + other.tail) + exact
    assert norm(dense(straight) - dense(other)) <= bound


# ---- splitting a batch into calls


def parts_of(data, X, dY):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(X)), max_size=8)))  # equal ones give a call without tokens
    return list(zip(X.tensor_split(cuts), dY.tensor_split(cuts), strict=True))


def accumulated(accumulator, parts, weights, loss_terms):
    for (X, dY), weight in zip(parts, weights, strict=True):
        accumulator.add(X, dY, weight)
    return accumulator.finish(loss_terms)


def splitting_a_batch_never_matters(data):
    shape, seed, dtype = data.draw(shapes), data.draw(seeds), data.draw(st.sampled_from(DTYPES))
    scale = data.draw(st.sampled_from((1e-30, 1e-8, 1.0, 1e8, 1e30) if dtype != torch.float16 else (1e-3, 1.0, 1e3)))
    tokens = data.draw(st.integers(1, 40))
    values = 1.0 / torch.arange(1, min(tokens, *shape) + 1)
    [(X, dY)] = micro_batches(planted(*shape, seed=seed, values=values), 1, tokens=tokens, seed=seed, dtype=dtype)
    dY = (dY.float() * scale).to(dtype)
    weight = data.draw(st.floats(0.5, 1e3))
    expected = dense_sum([(X, dY)])
    parts = parts_of(data, X, dY)
    for make in (lambda: FactorAccumulator(tokens, layer_generator(seed, "l")), lambda: MatrixAccumulator(tokens)):
        gradient = accumulated(make(), parts, [weight] * len(parts), weight)
        require_sound(gradient)
        assert norm(dense(gradient) - expected) <= 1e-4 * norm(expected) + SMALLEST * 16 * max(shape) ** 2
        assert gradient.tail <= 1e-4 * norm(expected) + SMALLEST * 16 * max(shape) ** 2


def the_residual_stays_near_its_optimum_however_a_batch_is_split(data):
    """Theorem 3.1 on a falling spectrum that the columns do not hold: at most RESIDUAL times the optimum."""
    rank, seed = data.draw(st.integers(1, 8)), data.draw(seeds)
    smallest = COLUMNS_PER_RANK * rank + 1
    shape = data.draw(st.tuples(st.integers(smallest, 192), st.integers(smallest, 192)))
    count = data.draw(st.integers(1, 6))
    tokens = -(-min(shape) // count)
    scale = data.draw(st.sampled_from((1e-25, 1.0, 1e25)))
    weights = data.draw(st.lists(st.floats(1, 100), min_size=count, max_size=count))
    batches = [
        (X, dY * scale / weight)
        for (X, dY), weight in zip(
            micro_batches(planted(*shape, seed=seed), count, tokens=tokens, seed=seed), weights, strict=True
        )
    ]
    parts, part_weights = [], []
    for (X, dY), weight in zip(batches, weights, strict=True):
        pieces = parts_of(data, X, dY)
        parts += pieces
        part_weights += [weight] * len(pieces)
    matrix = dense_sum(batches, weights)
    optimum = tail_norm(reference_svd(matrix).S, 2 * rank)
    accumulator = FactorAccumulator(COLUMNS_PER_RANK * rank, layer_generator(seed, "l"))
    gradient = accumulated(accumulator, parts, part_weights, 1.0)
    require_sound(gradient)
    step = first_step_operator(matrix, gradient.Vh[:rank], gradient.U[:, rank : 2 * rank])
    assert optimum * (1 - 1e-5) <= norm(step - matrix) <= RESIDUAL * optimum


RESIDUAL = 1.02
PROPERTIES: dict[Callable, int] = {  # with the number of cases in the torture run
    a_decomposition_agrees_with_float64: 300,
    a_product_agrees_with_float64: 200,
    a_start_has_a_finite_first_step: 200,
    merging_in_any_order_stays_within_the_stated_bound: 250,
    splitting_a_batch_never_matters: 200,
    the_residual_stays_near_its_optimum_however_a_batch_is_split: 300,
}


def holds(check, examples):
    """Generates cases and gives their number."""
    tried = 0

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def each(data):
        nonlocal tried
        tried += 1
        check(data)

    each()
    return tried


@pytest.mark.sampled
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_a_few_generated_cases(check, record_property):
    record_property("generated cases", holds(check, 12))


@pytest.mark.torture
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_many_generated_cases(check, record_property):
    tried = holds(check, PROPERTIES[check])
    assert tried >= PROPERTIES[check] - 5
    record_property("generated cases", tried)
