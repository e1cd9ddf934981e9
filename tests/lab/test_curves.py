import pytest

from loraga.lab.curves import final_loss, running_mean, steps_until


def test_running_mean_covers_each_window_once():
    assert running_mean([1, 2, 3, 6], window=2) == [1.5, 2.5, 4.5]
    assert running_mean([2, 4], window=10) == [3.0]


def test_final_loss_is_the_mean_of_the_last_steps():
    assert final_loss([100, 100, 1, 3], window=2) == 2.0


@pytest.mark.parametrize(
    ("target", "step"),
    [(8.5, 2), (3.5, 4), (1.5, 5), (1.0, None)],
)
def test_steps_until_counts_from_one_and_needs_a_whole_window(target, step):
    assert steps_until([10, 7, 5, 2, 1], target, window=2) == step


def test_a_run_reaches_its_own_final_loss_by_its_last_step():
    losses = [3.0, 2.5, 2.0, 1.5, 1.0]

    assert steps_until(losses, final_loss(losses, 2), 2) == 5


def test_a_run_that_diverged_reaches_nothing():
    assert steps_until([float("nan")] * 12, 1.0) is None
