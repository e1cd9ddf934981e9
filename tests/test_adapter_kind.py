"""Tests of what an adapter directory is taken for, on directories that PEFT and this package wrote.

Each verdict is held against the logits that plain PEFT gives on a fresh original base.
"""

from __future__ import annotations

import json
import math
import pickle
import shutil

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.config import KasaConfig
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import loraga
from loraga.adapter_kind import inspect_adapter
from loraga.errors import SaveError
from tests import foreign
from tests.foreign import CONFIG, WEIGHTS, edit, peft_lora_ga
from tests.models import batches, build, logits, train, with_lora

SAME, OTHER = 1e-5, 1e-2
PEFT_SAYS = pytest.mark.filterwarnings(
    "ignore:Full backward hook is firing:UserWarning",  # PEFT's own hooks, on a model whose inputs need no gradient
    "ignore:`eva_config` specified|`init_lora_weights` is 'eva':UserWarning",
    "ignore:lora with eva initialization:UserWarning",
    "ignore:Unexpected keyword arguments:UserWarning",
    "ignore:`init_lora_weights` is 'corda':UserWarning",
    "ignore:Found missing adapter keys:UserWarning",
)
pytestmark = PEFT_SAYS


@pytest.fixture(scope="module")
def data():
    return batches("Llama")


def distance(directory, trained, data):
    """How far plain PEFT's logits on a fresh original base are from the trained model's."""
    return foreign.distance(directory, trained, data[0])


def cut(path, bytes_left):
    path.write_bytes(path.read_bytes()[:bytes_left])


@pytest.fixture
def plain(tmp_path, data):
    """A trained plain LoRA's directory."""
    model = with_lora(build("Llama")).eval()
    train(model, data)
    model.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def peft_saves(tmp_path, data):
    """PEFT's start, its plain save and its converted save, with the trained logits, by rslora."""

    def save(**settings):
        model = peft_lora_ga(data, **settings)
        model.save_pretrained(tmp_path / "start")
        shutil.copytree(tmp_path / "start", tmp_path / "untouched")
        train(model, data)
        trained = logits(model, data[0])
        model.save_pretrained(tmp_path / "as_trained")
        model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
        return tmp_path, trained

    return save


@pytest.mark.parametrize("start", [True, "gaussian", "eva", "orthogonal", "mica"])
def test_a_plain_lora_loads_as_it_is(tmp_path, data, start):
    model = with_lora(build("Llama"), init_lora_weights=start).eval()
    train(model, data)
    model.save_pretrained(tmp_path)
    found = inspect_adapter(tmp_path)
    assert (found.kind, found.loads_as_it_is, found.remedy, found.notes) == ("plain_lora", True, "", ())
    assert (found.ranks, found.trained_ranks, found.alpha, found.use_rslora, found.layers) == ((2,), (2,), 4, True, 14)
    assert found.files == {CONFIG: "present", WEIGHTS: "present"}
    assert distance(tmp_path, logits(model, data[0]), data) < SAME


@pytest.mark.parametrize("offset", ["adapter", "weights"])
def test_our_adapter_loads_as_it_is_at_twice_the_rank(tmp_path, data, offset):
    model = with_lora(build("Llama")).eval()
    loraga.initialize(model, data, offset=offset, progress=False)
    train(model, data)
    model.save_pretrained(tmp_path)
    found = inspect_adapter(str(tmp_path))
    assert (found.kind, found.loads_as_it_is, found.remedy) == ("loraga", True, "")
    assert (found.ranks, found.trained_ranks, found.use_rslora) == ((4,), (2,), False)
    assert found.title == f"LoRA-GA adapter of loraga {loraga.__version__}, stored as plain LoRA"
    assert any("folding" in note for note in found.notes) == (offset == "weights")
    assert set(found.files.values()) == {"present"}
    assert {"loraga.json", "loraga_report.json"} <= found.files.keys()
    assert distance(tmp_path, logits(model, data[0]), data) < SAME


def test_our_adapter_without_an_offset_is_a_plain_lora_of_the_trained_rank(tmp_path, data):
    model = with_lora(build("Llama")).eval()
    loraga.initialize(model, data, offset="none", max_change=10.0, progress=False)
    train(model, data)
    model.save_pretrained(tmp_path)
    found = inspect_adapter(tmp_path)
    assert (found.kind, found.loads_as_it_is, found.ranks, found.trained_ranks) == ("loraga", True, (2,), (2,))
    assert "no start stored" in found.title
    assert distance(tmp_path, logits(model, data[0]), data) < SAME


def test_a_mirrored_start_loads_as_it_is_before_and_after_plain_peft_trained_it(tmp_path, data):
    model = with_lora(build("Llama")).eval()
    loraga.initialize(model, data, progress=False)
    loraga.save_mirrored(model, tmp_path)
    for steps in (0, 4):
        theirs = PeftModel.from_pretrained(build("Llama"), str(tmp_path), is_trainable=True).eval()
        train(theirs, data, steps=steps)
        theirs.save_pretrained(tmp_path)
        found = inspect_adapter(tmp_path)
        assert (found.kind, found.loads_as_it_is, found.remedy) == ("loraga", True, "")
        assert (found.ranks, found.trained_ranks) == ((4,), (4,))
        assert found.title == "adapter of loraga (scheme lora_ga), plain LoRA that started mirrored"
        assert distance(tmp_path, logits(theirs, data[0]), data) < SAME


@pytest.fixture
def residual(tmp_path, data):
    """A residual base of original/, what plain PEFT trained on it, and the trained logits."""
    build("Llama").save_pretrained(tmp_path / "original")
    model = with_lora(LlamaForCausalLM.from_pretrained(tmp_path / "original")).eval()
    loraga.initialize(model, data, offset="weights", progress=False)
    loraga.save_residual(model, tmp_path / "residual")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "residual")
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "residual" / "adapter"), is_trainable=True).eval()
    train(theirs, data)
    theirs.save_pretrained(tmp_path / "trained")
    return tmp_path, logits(theirs, data[0])


@pytest.mark.parametrize("which", ["trained", "residual/adapter"])
def test_an_adapter_for_a_residual_base_does_not_load_as_it_is(residual, data, which):
    folder, trained = residual
    found = inspect_adapter(folder / which)
    assert (found.kind, found.loads_as_it_is) == ("loraga_residual", False)
    assert (found.ranks, found.trained_ranks, found.base_model) == ((2,), (2,), str(folder / "residual"))
    assert f"for the residual base {folder / 'residual'}, whose weights are those of {folder / 'original'}" in found.why
    assert f"loraga export as a plain LoRA of {folder / 'original'}" in found.remedy
    assert distance(folder / which, trained, data) > OTHER


def test_the_remedy_for_an_adapter_of_a_residual_base_gives_the_trained_function(residual, data):
    folder, trained = residual
    loraga.export(loraga.load(build("Llama"), folder / "trained"), folder / "exported")
    found = inspect_adapter(folder / "exported")
    assert (found.kind, found.loads_as_it_is, found.trained_ranks) == ("loraga", True, (2,))
    assert found.base_model == str(folder / "original")
    assert distance(folder / "exported", trained, data) < SAME


@pytest.mark.parametrize("lost", ["record", "base"])
def test_an_adapter_whose_residual_base_is_gone_or_damaged_is_known_as_far_as_its_files_tell(residual, lost):
    folder, _ = residual
    if lost == "record":
        cut(folder / "residual" / "loraga_residual.json", 7)
        found = inspect_adapter(folder / "trained")
        assert "loraga_residual.json is damaged" in found.why
    else:  # the start has a report, which says it; what a tool has trained has none
        shutil.copytree(folder / "residual" / "adapter", folder / "alone")
        shutil.rmtree(folder / "residual")
        found = inspect_adapter(folder / "alone")
    assert (found.kind, found.loads_as_it_is) == ("loraga_residual", False)
    assert "by loraga export --model: its start is needed" in found.remedy


def test_a_file_of_ours_that_speaks_of_another_adapter_is_not_believed(tmp_path, data):
    model = with_lora(build("Llama")).eval()
    loraga.initialize(model, data, progress=False)
    model.save_pretrained(tmp_path / "ours")
    with_lora(build("Llama")).save_pretrained(tmp_path / "plain")
    shutil.copy(tmp_path / "ours" / "loraga.json", tmp_path / "plain")
    found = inspect_adapter(tmp_path / "plain")
    assert (found.kind, found.loads_as_it_is) == ("plain_lora", True)
    assert any("loraga.json speaks of another adapter" in note for note in found.notes)


def test_a_damaged_file_of_ours_does_not_keep_peft_from_loading(tmp_path, data):
    model = with_lora(build("Llama")).eval()
    loraga.initialize(model, data, progress=False)
    model.save_pretrained(tmp_path)
    cut(tmp_path / "loraga.json", 7)
    found = inspect_adapter(tmp_path)
    assert found.files["loraga.json"] == "damaged"
    assert found.loads_as_it_is
    assert any("loraga.json is damaged" in note for note in found.notes)
    assert distance(tmp_path, logits(model, data[0]), data) < SAME


@pytest.mark.parametrize("rslora", [False, True])
def test_pefts_lora_ga_as_trained_does_not_load_as_it_is(peft_saves, data, rslora):
    path, trained = peft_saves(use_rslora=rslora)
    found = inspect_adapter(path / "as_trained")
    assert (found.kind, found.loads_as_it_is, found.ranks) == ("peft_lora_ga", False, (2,))
    assert (found.base, found.loraga_loads) == ("changed", False)
    assert "W0 - eta B0 A0" in found.why
    assert "path_initial_model_for_weight_conversion" in found.remedy
    assert "`loraga export` makes a plain LoRA of it with --initial" in found.remedy
    assert distance(path / "as_trained", trained, data) > OTHER


@pytest.mark.parametrize("rslora", [False, True])
def test_pefts_converted_lora_ga_loads_as_it_is(peft_saves, data, rslora):
    path, trained = peft_saves(use_rslora=rslora)
    found = inspect_adapter(path / "converted")
    assert (found.kind, found.loads_as_it_is, found.remedy) == ("peft_lora_ga", True, "")
    assert (found.ranks, found.trained_ranks) == ((4,), (2,))
    assert distance(path / "converted", trained, data) < SAME


def test_the_remedy_for_pefts_lora_ga_gives_the_trained_function(peft_saves, data):
    path, trained = peft_saves(use_rslora=True)
    (path / "untouched").rename(path / "as_trained" / "initial_model")
    assert f"(in {path / 'as_trained' / 'initial_model'})" in inspect_adapter(path / "as_trained").remedy
    stack(path / "as_trained", path / "as_trained" / "initial_model")
    edit(path / "as_trained", r=4, lora_alpha=4 * math.sqrt(2), init_lora_weights=True)
    assert inspect_adapter(path / "as_trained").loads_as_it_is
    assert distance(path / "as_trained", trained, data) < SAME


def stack(trained, start):
    """[A; A0] and [B, -B0] into the trained adapter's file."""
    now, before = load_file(trained / WEIGHTS), load_file(start / WEIGHTS)
    joined = {
        key: torch.cat([now[key], before[key]], dim=0)
        if "lora_A" in key
        else torch.cat([now[key], -before[key]], dim=1)
        for key in now
    }
    save_file(joined, trained / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_rslora": True}, True),  # lora_alpha is whole
        ({"r": 3}, True),  # the rank is odd
        ({}, False),  # looks like a converted adapter of rank 1: what the module says cannot be told
    ],
)
def test_a_start_that_peft_converted_with_is_told_from_a_converted_adapter_where_it_can_be(
    peft_saves, data, settings, told
):
    path, trained = peft_saves(**settings)
    found = inspect_adapter(path / "start")
    assert found.kind == "peft_lora_ga"
    assert found.loads_as_it_is != told
    assert any("a start that an adapter was converted with looks the same" in note for note in found.notes) != told
    assert distance(path / "start", trained, data) > OTHER


@pytest.mark.parametrize(
    ("settings", "lost"),
    [({"use_dora": True}, "DoRA's magnitudes"), ({"modules_to_save": ["lm_head"]}, "modules_to_save (lm_head)")],
)
def test_what_pefts_conversion_drops_is_missed(peft_saves, data, settings, lost):
    path, trained = peft_saves(**settings)
    found = inspect_adapter(path / "converted")
    assert not found.loads_as_it_is
    assert lost in found.why
    assert "conversion drops" in found.why
    if "modules_to_save" in settings:
        with pytest.raises(KeyError, match="lm_head"):
            distance(path / "converted", trained, data)
    else:
        assert distance(path / "converted", trained, data) > OTHER


AUTHORS_KEYS = {
    "peft_type": "LORAGA",
    "bsz": 2,
    "iters": 64,
    "direction": "ArB2r",
    "max_length": 1024,
    "dtype": "fp32",
    "scale": "stable",
    "stable_gamma": 16,
}


def as_the_authors_save(directory, **changes):
    """Their config: its own type and flat settings, in the place of PEFT's nested ones."""
    config = json.loads((directory / CONFIG).read_text())
    del config["lora_ga_config"]
    (directory / CONFIG).write_text(json.dumps({**config, **AUTHORS_KEYS, **changes}))


@pytest.mark.parametrize("rslora", [False, True])
def test_the_authors_converted_adapter_needs_the_remedy_and_loads_with_it(peft_saves, data, rslora):
    path, trained = peft_saves(use_rslora=rslora)
    directory = path / "converted"
    as_the_authors_save(directory, lora_alpha=8)  # they double it, rslora or not
    found = inspect_adapter(directory)
    assert (found.kind, found.loads_as_it_is, found.ranks, found.trained_ranks) == (
        "authors_lora_ga",
        False,
        (4,),
        (2,),
    )
    with pytest.raises(KeyError, match="LORAGA"):
        distance(directory, trained, data)
    assert found.remedy.startswith('set "peft_type" to "LORA"')

    edit(directory, peft_type="LORA")
    halfway = inspect_adapter(directory)
    assert halfway.kind == "authors_lora_ga"
    assert halfway.loads_as_it_is != rslora
    assert (distance(directory, trained, data) < SAME) != rslora
    if rslora:
        assert "divide lora_alpha by the root of 2 (to 5.656854249)" in found.remedy
        edit(directory, lora_alpha=5.656854249)
        assert inspect_adapter(directory).loads_as_it_is
        assert distance(directory, trained, data) < SAME


def test_the_authors_adapter_as_trained_does_not_load_as_it_is(peft_saves, data):
    path, trained = peft_saves()
    as_the_authors_save(path / "as_trained")
    (path / "untouched").rename(path / "as_trained" / "init_lora_checkpoint")
    found = inspect_adapter(path / "as_trained")
    assert (found.kind, found.loads_as_it_is, found.ranks) == ("authors_lora_ga", False, (2,))
    assert f"(in {path / 'as_trained' / 'init_lora_checkpoint'})" in found.remedy
    assert "it also holds adapters in init_lora_checkpoint" in found.notes
    edit(path / "as_trained", peft_type="LORA", init_lora_weights=True)  # what alone makes stock PEFT take it
    assert distance(path / "as_trained", trained, data) > OTHER


def test_the_wrapper_of_the_authors_code_is_recognised(peft_saves, data):
    path, trained = peft_saves()
    as_the_authors_save(path / "as_trained", peft_type="LORA", init_lora_weights="lora-ga")
    found = inspect_adapter(path / "as_trained")
    assert (found.kind, found.loads_as_it_is) == ("authors_lora_ga", False)
    with pytest.raises(ValueError, match="Unknown initialization"):
        distance(path / "as_trained", trained, data)


@pytest.mark.parametrize(
    ("settings", "title", "loads"),
    [
        ({"init_lora_weights": "pissa"}, "PiSSA or OLoRA", True),
        ({"init_lora_weights": "olora"}, "PiSSA or OLoRA", True),
        ({"init_lora_weights": "pissa_niter_2"}, "PiSSA by a randomised decomposition", False),
        ({"kasa_config": KasaConfig()}, "KaSA", True),
    ],
)
def test_other_starts_that_change_the_base_are_named(tmp_path, data, settings, title, loads):
    model = with_lora(build("Llama"), **settings).eval()
    train(model, data)
    model.save_pretrained(tmp_path)
    found = inspect_adapter(tmp_path)
    assert (found.kind, found.title, found.loads_as_it_is) == ("other", title, loads)
    assert bool(found.remedy) != loads
    apart = distance(tmp_path, logits(model, data[0]), data)
    assert apart < SAME if loads else apart > OTHER


@pytest.mark.parametrize("start", ["corda", True])
def test_corda_does_not_load_as_it_is(plain, data, start):
    edit(plain, init_lora_weights=start, corda_config={})
    found = inspect_adapter(plain)
    assert (found.kind, found.title, found.loads_as_it_is) == ("other", "CorDA", False)
    if start == "corda":
        with pytest.raises(ValueError, match="eigens"):
            distance(plain, logits(build("Llama"), data[0]), data)


@pytest.mark.parametrize(
    ("changes", "title", "why"),
    [
        ({"init_lora_weights": "loftq"}, "LoftQ", "quantised weights"),
        ({"loftq_config": {"loftq_bits": 4}}, "LoftQ", "quantised weights"),
        ({"init_lora_weights": "new"}, "LoRA started by new", "does not know the start new"),
        ({"peft_type": "IA3"}, "adapter of type IA3", "does not know the type IA3"),
    ],
)
def test_what_cannot_be_judged_is_not_said_to_load(plain, changes, title, why):
    edit(plain, **changes)
    found = inspect_adapter(plain)
    assert (found.kind, found.title, found.loads_as_it_is) == ("other", title, False)
    assert why in found.why
    assert found.remedy


DAMAGES = {
    "half the tensors": (lambda w: cut(w, -100), "truncated", "is cut short: it has"),
    "half a header": (lambda w: cut(w, 40), "truncated", "within its header"),
    "nothing": (lambda w: cut(w, 0), "truncated", "within its header"),
    "a byte too many": (lambda w: w.write_bytes(w.read_bytes() + b"x"), "damaged", "its header says"),
    "no JSON": (lambda w: w.write_bytes((3).to_bytes(8, "little") + b"abc"), "damaged", "JSONDecodeError"),
    "a list": (lambda w: w.write_bytes((2).to_bytes(8, "little") + b"[]"), "damaged", "AttributeError"),
    "an endless header": (lambda w: w.write_bytes(b"\xff" * 64), "damaged", "claims a header of"),
    "no file": (lambda w: w.unlink(), "missing", "adapter_model.safetensors is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_told_and_do_not_load(plain, damage):
    spoil, state, why = DAMAGES[damage]
    spoil(plain / WEIGHTS)
    found = inspect_adapter(plain)
    assert (found.kind, found.loads_as_it_is, found.files[WEIGHTS]) == ("plain_lora", False, state)
    assert why in found.why
    assert "take an earlier checkpoint" in found.remedy
    assert found.ranks == (2,)


def test_a_damaged_file_comes_before_the_reason_of_its_kind(peft_saves):
    path, _ = peft_saves()
    cut(path / "as_trained" / WEIGHTS, -1)
    found = inspect_adapter(path / "as_trained")
    assert "is cut short" in found.why
    assert "W0 - eta B0 A0" in found.notes[0]


def change_tensors(directory, change):
    tensors = load_file(directory / WEIGHTS)
    save_file(change(tensors), directory / WEIGHTS, metadata={"format": "pt"})


def test_weights_that_do_not_fit_the_config_are_told(plain, data):
    edit(plain, r=8, lora_alpha=16)
    found = inspect_adapter(plain)
    assert not found.loads_as_it_is
    assert "says rank 8 for layer model.layers.0.mlp.down_proj, and adapter_model.safetensors has 2" in found.why
    with pytest.raises(RuntimeError, match="size mismatch"):
        distance(plain, logits(build("Llama"), data[0]), data)


def test_ranks_by_pattern_fit(tmp_path):
    with_lora(build("Llama"), rank_pattern={"q_proj": 3}).save_pretrained(tmp_path)
    found = inspect_adapter(tmp_path)
    assert (found.loads_as_it_is, found.ranks) == (True, (2, 3))
    edit(tmp_path, rank_pattern={"q_proj": 5})
    assert "says rank 5" in inspect_adapter(tmp_path).why
    edit(tmp_path, rank_pattern={"(": 5})
    with pytest.raises(SaveError, match="rank_pattern"):
        inspect_adapter(tmp_path)


def test_a_factor_without_its_other_is_told(plain):
    change_tensors(plain, lambda tensors: {k: t for k, t in tensors.items() if "layers.1.mlp.up_proj.lora_B" not in k})
    assert "has A but no B of layer model.layers.1.mlp.up_proj" in inspect_adapter(plain).why


def test_weights_without_factors_are_told(plain):
    change_tensors(plain, lambda tensors: {"other.weight": torch.ones(2)})
    assert "holds no LoRA factors" in inspect_adapter(plain).why


def test_a_pickle_is_named_and_not_opened(plain, monkeypatch):
    (plain / WEIGHTS).unlink()
    (plain / "adapter_model.bin").write_bytes(b"cbuiltins\nexec\n(S'raise SystemExit'\ntR.")
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    found = inspect_adapter(plain)
    assert (found.loads_as_it_is, found.files["adapter_model.bin"]) == (False, "not opened")
    assert "a pickle, which is not opened here" in found.why
    assert "if you trust who made it" in found.remedy


def test_safetensors_beside_a_pickle_are_what_counts(plain):
    (plain / "adapter_model.bin").write_bytes(b"anything")
    found = inspect_adapter(plain)
    assert (found.loads_as_it_is, found.files["adapter_model.bin"]) == (True, "not opened")


def test_a_folder_of_checkpoints_names_them_by_rising_number(plain):
    for number in (100, 4, 20):
        shutil.copytree(plain, plain.parent / "run" / f"checkpoint-{number}")
    with pytest.raises(SaveError, match="there are adapters in checkpoint-4, checkpoint-20, checkpoint-100: name one"):
        inspect_adapter(plain.parent / "run")


def test_a_folder_of_named_adapters_names_some_of_them(plain):
    for number in range(11):
        shutil.copytree(plain, plain.parent / "many" / f"adapter{number}")
    with pytest.raises(SaveError, match="adapter7 and 3 more"):
        inspect_adapter(plain.parent / "many")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.mkdir(), "it is not an adapter directory"),
        (lambda p: None, "does not exist"),
        (lambda p: p.write_text(""), "is a file; name the directory"),
        (lambda p: (p / "checkpoint-3").mkdir(parents=True), "it holds checkpoint-3, and none of them has one either"),
        (lambda p: (p.mkdir(), (p / WEIGHTS).write_text("")), "adapter_model.safetensors is there"),
        (lambda p: (p.mkdir(), (p / "adapter_model.bin").write_text("")), "adapter_model.bin is there"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{}")), "that of a whole model"),
        (lambda p: (p.mkdir(), (p / CONFIG).write_text('{"peft')), "is damaged: Unterminated"),
        (lambda p: (p.mkdir(), (p / CONFIG).write_text("[]")), "is damaged: it holds no object"),
        (lambda p: (p.mkdir(), (p / CONFIG).write_text("{}")), "it has no peft_type"),
        (lambda p: (p.mkdir(), (p / CONFIG).write_text('{"peft_type": "LORA", "rank_pattern": 3}')), "no object"),
    ],
)
def test_what_is_no_adapter_is_an_error_that_says_what_is_there(tmp_path, make, message):
    make(tmp_path / "it")
    with pytest.raises(SaveError, match=message):
        inspect_adapter(tmp_path / "it")


def test_a_config_without_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("loraga.adapter_files.LARGEST_JSON", 10)
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA"}')
    with pytest.raises(SaveError, match="longer than 10 bytes"):
        inspect_adapter(tmp_path)


def test_the_facts_are_json(plain):
    edit(plain, base_model_name_or_path="some/model")
    facts = json.loads(json.dumps(inspect_adapter(plain).to_dict()))
    assert facts["base_model"] == "some/model"
    assert facts["ranks"] == [2]
