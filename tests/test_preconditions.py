import pytest

from loraga import AdapterError, GradientError
from loraga.preconditions import require_choice, stop_or_warn, warn_of_few_directions


def test_many_layers_with_one_reason_are_named_together():
    reasons = {f"layers.{i}": "it is idle" for i in range(8)} | {"head": "it is frozen"}
    message = r"layers layers.0, .*, layers.4 and 3 more: it is idle; layer head: it is frozen"
    with pytest.raises(GradientError, match=message):
        stop_or_warn(reasons, "error", GradientError)
    with pytest.warns(UserWarning, match=f"kept as plain LoRA: {message}"):
        stop_or_warn(reasons, "lora", GradientError)


def test_no_reason_is_no_warning():
    stop_or_warn({}, "error", AdapterError)
    warn_of_few_directions({"a": (4, 2), "b": (9, 2)})


def test_layers_with_few_directions_are_named_up_to_five():
    with pytest.warns(UserWarning, match=r"layer l0 has 3 singular directions and rank 2 wants 4; .*and 2 more layers"):
        warn_of_few_directions({f"l{i}": (3, 2) for i in range(7)})


def test_an_unknown_choice_lists_the_known_ones():
    require_choice("mode", "a", ("a", "b"))
    with pytest.raises(AdapterError, match="mode='c' is unknown; choose from 'a', 'b'"):
        require_choice("mode", "c", ("a", "b"))
