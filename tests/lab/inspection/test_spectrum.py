import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraga import GradientError, LowRankGradient
from loraga.lab.inspection.spectrum import Spectrum, spectrum_of_factors, spectrum_of_matrix
from tests.planted import planted

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def factors(gradient, columns):
    """The first columns of a planted gradient, with the exact norm of the others as tail."""
    kept = (gradient.U[:, :columns].float(), gradient.S[:columns].float(), gradient.Vh[:columns].float())
    return LowRankGradient(*kept, tail=float(gradient.S[columns:].norm()), loss_terms=1.0)


@given(shape=SHAPES, rank=st.integers(1, 14), seed=st.integers(0, 99), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_coverage_is_the_share_of_2r_squared_singular_values(shape, rank, seed, scale):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale

    spectrum = spectrum_of_matrix(matrix)

    squares = torch.linalg.eigvalsh(matrix.double() @ matrix.double().T).clamp_min(0).flip(0)  # another way to them
    assert spectrum.coverage(rank) == pytest.approx(float(squares[: 2 * rank].sum() / squares.sum()), rel=1e-9)
    assert spectrum.is_whole
    assert spectrum.norm == pytest.approx(float(matrix.double().norm()), rel=1e-12)


def test_the_singular_values_of_a_planted_gradient_are_found():
    gradient = planted(9, 6, scale=3.0)

    assert spectrum_of_matrix(gradient.matrix).values == pytest.approx(
        [3 / number for number in range(1, 7)], rel=1e-12
    )


@given(shape=SHAPES, seed=st.integers(0, 99), share=st.floats(0.01, 0.999))
def test_the_rank_for_a_share_is_the_smallest_one_that_covers_it(shape, seed, share):
    spectrum = spectrum_of_matrix(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))

    rank = spectrum.rank_for(share)

    assert spectrum.coverage(rank) >= share
    assert rank == 1 or spectrum.coverage(rank - 1) < share


def test_of_factors_no_more_is_told_than_they_know():
    gradient = planted(20, 16, power=0.5)

    whole, part = spectrum_of_matrix(gradient.matrix), spectrum_of_factors(factors(gradient, 6))

    assert [part.coverage(rank) for rank in (1, 2, 3)] == pytest.approx(
        [whole.coverage(rank) for rank in (1, 2, 3)], rel=1e-6
    )
    assert part.coverage(4) is None
    assert not part.is_whole
    share = whole.coverage(3)
    assert part.rank_for(share - 1e-3) == 3
    assert part.rank_for(share + 1e-3) is None
    assert whole.rank_for(share + 1e-3) == 4


def test_an_odd_last_value_gives_no_rank_that_needs_the_one_after_it():
    spectrum = Spectrum((9, 9), (2.0, 1.0, 1.0), squares=6.5)

    assert spectrum.rank_for(5.9 / 6.5) is None  # reached by the third value, but the coverage of rank 2 is not known
    assert spectrum.rank_for(4.9 / 6.5) == 1


def test_factors_of_all_columns_are_a_whole_spectrum():
    gradient = planted(7, 5)

    spectrum = spectrum_of_factors(factors(gradient, 5))

    assert spectrum.is_whole
    assert spectrum.coverage(50) == pytest.approx(1.0)


def test_a_zero_gradient_covers_nothing_and_no_rank_is_enough():
    spectrum = spectrum_of_matrix(torch.zeros(4, 3))

    assert spectrum.coverage(2) == 0
    assert spectrum.rank_for(0.9) is None


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(GradientError, match="not finite"):
        spectrum_of_matrix(torch.tensor([[1.0, math.nan]]))
