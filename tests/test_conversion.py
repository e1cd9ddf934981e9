"""Adapters that PEFT's lora_ga and the authors' code saved, as plain LoRAs for the original base.

What was trained is held against what plain PEFT gives on a fresh original base, before and after.
"""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

import loraga
from loraga.adapter_kind import inspect_adapter
from loraga.errors import AdapterError, SaveError
from tests.foreign import CONFIG, PEFT_WARNS, WEIGHTS, AuthorsRun, distance, edit, peft_lora_ga
from tests.models import batches, build, logits, relative_difference, train, with_lora

pytestmark = [pytest.mark.filterwarnings(warning) for warning in PEFT_WARNS]
SAME, OTHER = 1e-5, 1e-2
DATA = batches("Llama")


def trained_by_peft(path, name="Llama", data=DATA, steps=4, **settings):
    """PEFT's lora_ga, saved in every way: before training, after it, converted, and the base under it."""
    model = peft_lora_ga(data, name, **settings)
    model.save_pretrained(path / "start")
    shutil.copytree(path / "start", path / "rewritten")
    train(model, data, steps)
    model.save_pretrained(path / "trained")
    try:
        model.save_pretrained(path / "converted", path_initial_model_for_weight_conversion=str(path / "rewritten"))
    except ValueError:  # rslora with patterns, which PEFT cannot convert
        shutil.rmtree(path / "converted")
    model.get_base_model().save_pretrained(path / "from_within")
    expected = logits(model, data[0], name)
    copy.deepcopy(model).merge_and_unload().save_pretrained(path / "merged")
    model.unload().save_pretrained(path / "changed")
    return expected


def converted(path, name="Llama", data=DATA, **given):
    """Exports what loraga.load converts, and gives its distance from the trained logits by plain PEFT."""
    model = loraga.load(build(name), path / "trained", **given).eval()
    loraga.export(model, path / "out")
    return model


PATTERNS = {"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"down_proj": 9, r"layers\.1\.self_attn\.q_proj": 3}}
IGNORED = pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern:UserWarning")


@IGNORED
@pytest.mark.parametrize("given", ["initial", "rewritten", "changed", "from_within", "both"])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_rslora": True, **PATTERNS}], ids=str)
def test_pefts_adapter_gives_the_trained_logits_on_the_original_base_once_it_is_converted(tmp_path, given, settings):
    expected = trained_by_peft(tmp_path, **settings)
    assert distance(tmp_path / "trained", expected, DATA[0]) > OTHER  # what PEFT gives, silently
    starts = {
        "initial": {"initial": tmp_path / "start"},
        "rewritten": {"initial": str(tmp_path / "rewritten")},
        "changed": {"changed_base": tmp_path / "changed"},
        "from_within": {"changed_base": str(tmp_path / "from_within")},
        "both": {"initial": tmp_path / "start", "changed_base": tmp_path / "changed"},
    }
    model = converted(tmp_path, **starts[given])
    assert relative_difference(logits(model, DATA[0]), expected) < SAME
    assert distance(tmp_path / "out", expected, DATA[0]) < SAME
    with model.disable_adapter():
        assert torch.equal(logits(model, DATA[0]), logits(build("Llama"), DATA[0]))
    kind = inspect_adapter(tmp_path / "out")
    assert (kind.kind, kind.loads_as_it_is, kind.base) == ("loraga", True, "original")
    assert kind.trained_ranks == ((1, 2) if "rank_pattern" in settings else (2,))


def test_a_changed_base_may_be_a_model(tmp_path):
    expected = trained_by_peft(tmp_path)
    changed = type(build("Llama")).from_pretrained(tmp_path / "changed")
    before = {name: tensor.clone() for name, tensor in changed.state_dict().items()}
    converted(tmp_path, changed_base=changed)
    assert distance(tmp_path / "out", expected, DATA[0]) < SAME
    assert all(torch.equal(tensor, before[name]) for name, tensor in changed.state_dict().items())


def test_a_converted_adapter_goes_on_training_as_it_would_have(tmp_path):
    trained_by_peft(tmp_path, use_rslora=True)
    ours = loraga.load(build("Llama"), tmp_path / "trained", initial=tmp_path / "start", is_trainable=True).eval()
    assert ours.peft_config["default"].r == 2
    theirs = type(build("Llama")).from_pretrained(tmp_path / "changed").eval()
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "trained", is_trainable=True).eval()
    for model in (ours, theirs):
        train(model, DATA, steps=3)
    assert relative_difference(logits(ours, DATA[0]), logits(theirs, DATA[0])) < SAME


def test_a_checkpoint_of_trainer_is_converted_too(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = peft_lora_ga(DATA, use_rslora=True)
    model.save_pretrained(tmp_path / "start")
    rows = [{key: row[0] for key, row in batch.items()} for batch in DATA]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, report_to=[], use_cpu=True, learning_rate=1e-2, disable_tqdm=True
    )
    Trainer(model, arguments, train_dataset=rows, data_collator=torch.utils.data.default_collate).train()
    expected = logits(model.eval(), DATA[0])
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "trained")
    assert distance(tmp_path / "trained", expected, DATA[0]) > OTHER
    converted(tmp_path, initial=tmp_path / "start")
    assert distance(tmp_path / "out", expected, DATA[0]) < SAME


@pytest.mark.parametrize("given", ["initial", "changed_base"])
@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"direction": "ArBr", "scale": "gd_scale"},
        {"direction": "random", "scale": "unit"},
    ],
    ids=str,
)
def test_what_pefts_conversion_loses_is_kept(tmp_path, settings, given):
    if "direction" in settings:
        from peft import LoraGAConfig

        settings = {"lora_ga_config": LoraGAConfig(**settings)}
    expected = trained_by_peft(tmp_path, **settings)
    for source in ["start"] if given == "initial" else ["changed", "from_within"]:
        model = converted(tmp_path, **{given: tmp_path / source})
        assert distance(tmp_path / "out", expected, DATA[0]) < SAME
        if settings.get("target_modules") == ["q_proj", "lm_head"]:
            head = model.get_base_model().lm_head.base_layer.weight
            assert torch.equal(head, build("Llama").lm_head.weight)  # which PEFT saves, with the start subtracted


def test_a_transposed_layer_is_converted(tmp_path):
    data = batches("GPT-2")
    expected = trained_by_peft(tmp_path, "GPT-2", data, target_modules=["c_attn", "c_proj"])
    assert distance(tmp_path / "trained", expected, data[0], "GPT-2") > OTHER
    for given in ({"initial": tmp_path / "start"}, {"changed_base": tmp_path / "changed"}):
        converted(tmp_path, "GPT-2", **given)
        assert distance(tmp_path / "out", expected, data[0], "GPT-2") < SAME


def test_layers_that_peft_started_as_plain_lora_stay_as_they_are(tmp_path):
    """PEFT does so without a gradient, for instance on a quantised base after its own pages' recipe."""
    model = with_lora(build("Llama"), init_lora_weights="lora_ga").eval()
    model.save_pretrained(tmp_path / "start")
    train(model, DATA)
    model.save_pretrained(tmp_path / "trained")
    converted(tmp_path, initial=tmp_path / "start")
    assert distance(tmp_path / "out", logits(model, DATA[0]), DATA[0]) < SAME
    assert inspect_adapter(tmp_path / "out").ranks == (2,)


def test_what_peft_converted_is_loaded_as_it_is(tmp_path):
    expected = trained_by_peft(tmp_path)
    model = loraga.load(build("Llama"), tmp_path / "converted").eval()
    assert relative_difference(logits(model, DATA[0]), expected) < SAME


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_2"])
def test_other_starts_that_were_subtracted_are_converted_too(tmp_path, start):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = with_lora(build("Llama"), init_lora_weights=start).eval()
    model.save_pretrained(tmp_path / "start")
    train(model, DATA)
    model.save_pretrained(tmp_path / "trained")
    expected = logits(model, DATA[0])
    model.unload().save_pretrained(tmp_path / "changed")
    for given in ({"initial": tmp_path / "start"}, {"changed_base": tmp_path / "changed"}):
        converted(tmp_path, **given)
        assert distance(tmp_path / "out", expected, DATA[0]) < SAME
        assert json.loads((tmp_path / "out" / CONFIG).read_text())["init_lora_weights"] is True


# --- the authors' code

AUTHORS = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"down_proj": 9, "q_proj": 3}},
    # their PEFT finds v_proj first, under which there is no alpha, and the second key is never looked at
    {"use_rslora": True, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"layers.0.self_attn.v_proj": 6}},
]


@pytest.mark.parametrize("settings", AUTHORS, ids=str)
@pytest.mark.parametrize("saved", ["as trained", "final"])
def test_the_authors_adapter_gives_the_trained_logits_on_the_original_base(tmp_path, settings, saved):
    run = AuthorsRun(DATA, **settings)
    run.save(tmp_path / "trained" / "init_lora_checkpoint")
    start = logits(run.model, DATA[0])
    assert relative_difference(start, logits(build("Llama"), DATA[0])) < SAME
    train(run.model, DATA)
    expected = logits(run.model, DATA[0])
    assert relative_difference(expected, start) > OTHER
    (tmp_path / "trained" / "init_lora_checkpoint").rename(tmp_path / "start")
    (tmp_path / "trained").rmdir()
    given = {}
    if saved == "as trained":
        run.save(tmp_path / "trained")
        given = {"initial": tmp_path / "start"}
    else:
        run.save_final(tmp_path / "trained")
    model = converted(tmp_path, **given)
    assert relative_difference(logits(model, DATA[0]), expected) < SAME
    assert distance(tmp_path / "out", expected, DATA[0]) < SAME
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert (config["peft_type"], config["init_lora_weights"]) == ("LORA", True)
    assert not {"bsz", "iters", "stable_gamma", "direction"} & config.keys()
    assert model.peft_config["default"].use_rslora == settings.get("use_rslora", False)


def test_the_authors_first_scripts_save_the_start_with_its_lora_alpha_negative(tmp_path):
    """reproduce/run_exp.py writes orig_checkpoint so, from a plain LoraConfig whose adapter it starts anew."""
    run = AuthorsRun(DATA, use_rslora=True)
    run.config.update(peft_type="LORA", init_lora_weights=True)
    for key in ("bsz", "iters", "stable_gamma", "direction", "max_length", "dtype", "scale"):
        del run.config[key]
    run.save(tmp_path / "start")
    edit(tmp_path / "start", lora_alpha=-4)
    train(run.model, DATA)
    run.save(tmp_path / "trained")
    expected = logits(run.model, DATA[0])
    assert distance(tmp_path / "trained", expected, DATA[0]) > OTHER
    converted(tmp_path, initial=tmp_path / "start")
    assert distance(tmp_path / "out", expected, DATA[0]) < SAME


# --- what is refused

THE_WAY = "`loraga export` makes a plain LoRA of it with --initial"


@pytest.mark.parametrize("name", ["trained", "start"])
def test_pefts_adapter_is_refused_where_its_start_is_not_given(tmp_path, name):
    trained_by_peft(tmp_path)
    base = build("Llama")
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    with pytest.raises(SaveError, match=THE_WAY):
        loraga.load(base, tmp_path / name)
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.state_dict().items())
    ours = with_lora(base)
    loraga.initialize(ours, DATA, progress=False)
    kept = logits(ours, DATA[0])
    with pytest.raises(SaveError, match=THE_WAY):
        ours.load_adapter(tmp_path / name, "default")
    with pytest.raises(SaveError, match=THE_WAY):
        ours.load_adapter(tmp_path / name, "another")
    assert torch.equal(logits(ours, DATA[0]), kept)
    assert list(ours.peft_config) == ["default"]


def test_the_authors_adapters_are_refused_where_plain_peft_would_misread_them(tmp_path):
    run = AuthorsRun(DATA)
    run.save(tmp_path / "start")
    train(run.model, DATA)
    run.save(tmp_path / "trained")
    run.save_final(tmp_path / "final")
    with pytest.raises(SaveError, match=THE_WAY):
        loraga.load(build("Llama"), tmp_path / "trained")
    ours = with_lora(build("Llama"))
    loraga.initialize(ours, DATA, progress=False)
    for name in ("trained", "final"):
        with pytest.raises(SaveError, match="`loraga export`"):
            ours.load_adapter(tmp_path / name, "another")


@pytest.mark.parametrize("start", ["lora_ga", "pissa", "olora"])
def test_a_model_whose_base_peft_changed_is_neither_initialised_nor_exported_but_merged(tmp_path, start):
    model = peft_lora_ga(DATA) if start == "lora_ga" else with_lora(build("Llama"), init_lora_weights=start).eval()
    with pytest.raises(AdapterError, match=f"init_lora_weights='{start}': PEFT changes the base weights"):
        loraga.initialize(model, DATA, progress=False)
    train(model, DATA)
    for rank in (None, 2):
        with pytest.raises(AdapterError, match="is given --initial"):
            loraga.export(model, tmp_path / "out", rank=rank)
    assert not (tmp_path / "out").exists()
    loraga.export(model, tmp_path / "out", merge=True)
    merged = type(build("Llama")).from_pretrained(tmp_path / "out").eval()
    assert relative_difference(logits(merged, DATA[0]), logits(model, DATA[0])) < SAME


def test_corda_is_refused_onto_the_original_base(tmp_path):
    """Its pages say to set init_lora_weights to true for the residual base; its corda_config stays."""
    model = with_lora(build("Llama"))
    model.save_pretrained(tmp_path)
    edit(tmp_path, corda_config={})
    with pytest.raises(SaveError, match="CorDA"):
        loraga.load(build("Llama"), tmp_path)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "pissa", "olora"])
def test_starts_that_plain_peft_loads_rightly_are_loaded_by_loraga_too(tmp_path, start):
    model = with_lora(build("Llama"), init_lora_weights=start).eval()
    train(model, DATA)
    model.save_pretrained(tmp_path)
    assert relative_difference(logits(loraga.load(build("Llama"), tmp_path), DATA[0]), logits(model, DATA[0])) < SAME


def test_an_adapter_whose_init_lora_weights_was_changed_by_hand_is_not_taken_for_a_converted_one(tmp_path):
    """As the pages of PiSSA advise for its residual base; nothing in the config tells it then."""
    expected = trained_by_peft(tmp_path, r=4)
    edit(tmp_path / "trained", init_lora_weights=True)
    assert inspect_adapter(tmp_path / "trained").loads_as_it_is  # all that the header and the config can say
    with pytest.raises(SaveError, match="was probably changed by hand"):
        loraga.load(build("Llama"), tmp_path / "trained")
    with pytest.raises(SaveError, match="all of it is a start of LoRA-GA that was never trained"):
        loraga.load(build("Llama"), tmp_path / "rewritten")
    converted(tmp_path, initial=tmp_path / "rewritten")
    assert distance(tmp_path / "out", expected, DATA[0]) < SAME


def test_our_own_adapters_need_no_start(tmp_path):
    model = with_lora(build("Llama"))
    loraga.initialize(model, DATA, progress=False)
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(SaveError, match="is for the original base as it is; leave initial and changed_base away"):
        loraga.load(build("Llama"), tmp_path / "ours", initial=tmp_path / "ours")


def test_loftq_cannot_be_converted(tmp_path):
    with_lora(build("Llama")).save_pretrained(tmp_path / "it")
    edit(tmp_path / "it", loftq_config={"loftq_bits": 4})
    with pytest.raises(SaveError, match="LoftQ cannot be converted"):
        loraga.load(build("Llama"), tmp_path / "it", initial=tmp_path / "it")


def test_a_tied_weight_that_the_start_changed_twice_is_refused(tmp_path):
    trained_by_peft(tmp_path, target_modules=["lm_head"])
    tied = build("Llama")
    tied.lm_head.weight = tied.model.embed_tokens.weight
    with pytest.raises(SaveError, match="layer lm_head: its weight is tied to another module's"):
        loraga.load(tied, tmp_path / "trained", initial=tmp_path / "start")


def test_a_base_without_the_adapters_layers_is_refused(tmp_path):
    trained_by_peft(tmp_path)
    with pytest.raises(SaveError, match=r"the base has no layer model\.layers\.0"):
        loraga.load(build("GPT-2"), tmp_path / "trained", initial=tmp_path / "start")


@pytest.mark.parametrize(
    ("changed", "message"),
    [("nowhere", "nowhere is no directory"), ("trained", "cannot be loaded as a LlamaForCausalLM")],
)
def test_a_changed_base_that_is_none_is_refused(tmp_path, changed, message):
    trained_by_peft(tmp_path)
    with pytest.raises(SaveError, match=message):
        loraga.load(build("Llama"), tmp_path / "trained", changed_base=tmp_path / changed)


def test_a_changed_base_that_lacks_weights_is_refused(tmp_path):
    trained_by_peft(tmp_path)
    state = load_file(tmp_path / "changed" / "model.safetensors")
    del state["model.layers.1.mlp.down_proj.weight"]
    save_file(state, tmp_path / "changed" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SaveError, match=r"lacks 1 weights of a LlamaForCausalLM, such as model\.layers\.1\.mlp\.down"):
        loraga.load(build("Llama"), tmp_path / "trained", changed_base=tmp_path / "changed")


def test_the_new_rows_of_a_resized_head_are_kept_and_the_start_is_added_back(tmp_path):
    """PEFT saves a head that its adapter is on: here with the start subtracted from it."""
    expected = trained_by_peft(tmp_path, target_modules=["q_proj", "lm_head"])
    state = load_file(tmp_path / "trained" / WEIGHTS)
    assert "base_model.model.lm_head.base_layer.weight" in state
    other = build("Llama")
    with torch.no_grad():
        other.lm_head.weight[-3:] = 1.0  # rows that this process made anew
    loaded = loraga.load(other, tmp_path / "trained", initial=tmp_path / "start").eval()
    assert relative_difference(logits(loaded, DATA[0]), expected) < SAME


def test_a_quantised_base_is_told_of(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    trained_by_peft(tmp_path, target_modules=["q_proj"])
    base = build("Llama")
    for layer in base.model.layers:
        old = layer.self_attn.q_proj
        new = bitsandbytes.nn.Linear8bitLt(old.in_features, old.out_features, bias=False, has_fp16_weights=False)
        new.load_state_dict(old.state_dict())
        layer.self_attn.q_proj = new.to("cpu")
    with pytest.warns(UserWarning, match="the base is quantised"):
        loraga.load(base, tmp_path / "trained", initial=tmp_path / "start")


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_variants_of_lora_other_than_dora_are_refused(tmp_path):
    with_lora(build("Llama")).save_pretrained(tmp_path / "it")
    shutil.copytree(tmp_path / "it", tmp_path / "start")
    edit(tmp_path / "it", alora_invocation_tokens=[1])
    with pytest.raises(SaveError, match="its config has alora_invocation_tokens; only plain LoRA and DoRA"):
        loraga.load(build("Llama"), tmp_path / "it", initial=tmp_path / "start")
    assert LoraConfig.from_pretrained(tmp_path / "start").alora_invocation_tokens is None
