"""Starts that do not belong to an adapter, each refused with its reason; tests/test_conversion.py has those that do."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraga.errors import SaveError
from loraga.saved_adapter import read_saved_adapter
from loraga.subtracted_start import start_of_halves, start_of_initial
from tests.foreign import PEFT_WARNS, WEIGHTS, AuthorsRun, edit, peft_lora_ga
from tests.models import batches, train

pytestmark = [pytest.mark.filterwarnings(warning) for warning in PEFT_WARNS]
DATA = batches("Llama")
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def saved(path, **settings):
    """PEFT's start and its trained adapter."""
    model = peft_lora_ga(DATA, **settings)
    model.save_pretrained(path / "start")
    train(model, DATA)
    model.save_pretrained(path / "trained")


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    saved(path)
    return path


@pytest.fixture
def pair(once, tmp_path):
    """A copy of both, to be spoilt."""
    for name in ("start", "trained"):
        shutil.copytree(once / name, tmp_path / name)
    return tmp_path


def start_of(path):
    return start_of_initial(read_saved_adapter(path / "trained"), read_saved_adapter(path / "start"))


def change(directory, edited):
    state = load_file(directory / WEIGHTS)
    save_file(edited(state), directory / WEIGHTS, metadata={"format": "pt"})


def test_the_start_is_what_was_saved_before_training(pair):
    state, starts = load_file(pair / "start" / WEIGHTS), start_of(pair)
    assert len(starts) == 6
    start = starts["model.layers.0.self_attn.q_proj"]
    assert torch.equal(start.A, state[Q_PROJ.format("A")])
    assert torch.equal(start.B, state[Q_PROJ.format("B")])


def test_a_layer_whose_start_is_zero_has_none(pair):
    change(pair / "start", lambda state: {**state, Q_PROJ.format("B"): 0 * state[Q_PROJ.format("B")]})
    assert "model.layers.0.self_attn.q_proj" not in start_of(pair)


@pytest.mark.parametrize("fuller", ["start", "trained"])
def test_adapters_of_other_layers_are_refused(pair, fuller):
    other = "trained" if fuller == "start" else "start"
    change(pair / other, lambda state: {key: value for key, value in state.items() if ".0.self_attn.q_proj" not in key})
    with pytest.raises(SaveError, match=rf"layer model\.layers\.0\.self_attn\.q_proj is in \S+/{fuller} and not in"):
        start_of(pair)


def test_an_adapter_of_another_rank_is_refused(tmp_path):
    saved(tmp_path)
    shutil.rmtree(tmp_path / "start")
    peft_lora_ga(DATA, r=1).save_pretrained(tmp_path / "start")
    with pytest.raises(SaveError, match=r"has rank 2 .* that is no start of this adapter \(it holds its start already"):
        start_of(tmp_path)


@pytest.mark.parametrize("changes", [{"lora_alpha": 5}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 5}}])
@pytest.mark.parametrize("name", ["start", "trained"])
def test_an_adapter_of_another_scaling_is_refused(pair, name, changes):
    edit(pair / name, **changes)
    with pytest.raises(SaveError, match=r"layer model\.\S+ has scaling .* they are of other adapters"):
        start_of(pair)


def test_the_trained_adapter_is_no_start_of_its_own(pair):
    shutil.copytree(pair / "trained", pair / "start", dirs_exist_ok=True)
    with pytest.raises(SaveError, match="holds the same factors as"):
        start_of(pair)


def test_a_later_checkpoint_is_no_start(tmp_path):
    model = peft_lora_ga(DATA)
    train(model, DATA, steps=1)
    model.save_pretrained(tmp_path / "start")
    train(model, DATA, steps=3)
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(SaveError, match=r"are not orthogonal \(0\.\d+\), so it is no start of LoRA-GA but was trained"):
        start_of(tmp_path)


def test_a_later_checkpoint_of_the_authors_code_is_no_start(tmp_path):
    run = AuthorsRun(DATA)
    train(run.model, DATA, steps=1)
    run.save(tmp_path / "start")
    train(run.model, DATA, steps=3)
    run.save(tmp_path / "trained")
    with pytest.raises(SaveError, match="no start of LoRA-GA but was trained"):
        start_of(tmp_path)


def test_a_start_in_half_precision_is_orthogonal_enough(pair):
    for dtype in (torch.bfloat16, torch.float16):
        change(
            pair / "start",
            lambda state, dtype=dtype: {
                key: value.to(dtype).float() if "lora_A" in key else value for key, value in state.items()
            },
        )
        assert len(start_of(pair)) == 6


def test_a_start_of_which_the_adapter_has_nothing_left_is_warned_of(pair):
    """Another run's start has other signs in every layer."""
    change(pair / "start", lambda state: {key: -value for key, value in state.items()})
    with pytest.warns(UserWarning, match=r"cosine -0\.\d\d of their A\) that it may be another run's"):
        start_of(pair)


# --- conversions


@pytest.fixture
def conversion(tmp_path):
    """The trained adapter as PEFT converts it."""
    model = peft_lora_ga(DATA)
    model.save_pretrained(tmp_path / "start")
    shutil.copytree(tmp_path / "start", tmp_path / "rewritten")
    train(model, DATA)
    model.save_pretrained(tmp_path / "trained")
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "rewritten"))
    return tmp_path


def test_a_conversion_is_taken_apart(conversion):
    layers, starts = start_of_halves(read_saved_adapter(conversion / "converted"))
    trained, expected = read_saved_adapter(conversion / "trained").layers, start_of(conversion)
    assert starts.keys() == expected.keys()
    for name, start in starts.items():
        assert torch.equal(start.A, expected[name].A)
        assert torch.equal(start.B, expected[name].B)
        assert torch.equal(layers[name].A, trained[name].A)
        assert torch.equal(layers[name].B, trained[name].B)


def test_a_conversion_of_an_untrained_adapter_is_taken_apart_too(tmp_path):
    run = AuthorsRun(DATA)
    assert len(start_of_halves(read_saved_adapter(run.save_final(tmp_path / "final")))[1]) == 6


def test_a_trained_adapter_and_a_start_are_no_conversions(conversion):
    with pytest.raises(SaveError, match="was probably changed by hand"):
        model = peft_lora_ga(DATA, r=4)
        train(model, DATA)
        model.save_pretrained(conversion / "of rank 4")
        start_of_halves(read_saved_adapter(conversion / "of rank 4"))
    with pytest.raises(SaveError, match="was never trained"):
        start_of_halves(read_saved_adapter(conversion / "rewritten"))
