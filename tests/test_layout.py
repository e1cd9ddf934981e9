"""Tests of the layout on disk: joined and split again, and read by PEFT itself."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from loraga import LoragaError, SaveError
from loraga.layout import FORMAT, LayerLayout, SplitRecipe, join, offset_key, plain_config, split, weight_key

CONFIG = {"r": 4, "lora_alpha": 16, "use_rslora": True, "rank_pattern": {}, "alpha_pattern": {}}


def state_of(layers, seed=0, dtype=torch.float32, offset_dtype=torch.float32):
    """An adapter's state: {name: (layout, d_out, d_in)} -> its tensors, and some that belong to no layer."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    state = {"base_model.model.score.weight": draw(3, 5), "base_model.model.fc.lora_magnitude_vector": draw(4)}
    for name, (layout, d_out, d_in) in layers.items():
        state[weight_key(name, "A")] = draw(layout.rank, d_in).to(dtype)
        state[weight_key(name, "B")] = draw(d_out, layout.rank).to(dtype)
        if layout.offset:
            state[offset_key(name, "A")] = draw(layout.rank, d_in).to(offset_dtype)
            state[offset_key(name, "B")] = draw(d_out, layout.rank).to(offset_dtype)
    return state


layouts = st.dictionaries(
    st.sampled_from(["fc", "block.fc", "layers.0.q_proj", "layers.10.q_proj"]),
    st.tuples(
        st.builds(LayerLayout, rank=st.integers(1, 6), scaling=st.floats(0.1, 8), offset=st.booleans()),
        st.integers(1, 12),
        st.integers(1, 12),
    ),
    min_size=1,
)


def same(one, two):
    return one.keys() == two.keys() and all(
        torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype for key in one
    )


@given(layouts, st.integers(0, 1000), st.sampled_from([torch.float32, torch.bfloat16]))
def test_split_takes_apart_what_join_made_bit_for_bit(layers, seed, dtype):
    state = state_of(layers, seed, dtype, dtype)
    before = {key: tensor.clone() for key, tensor in state.items()}
    joined = join(state, {name: layout for name, (layout, _, _) in layers.items()})
    ranks = {name: layout.rank for name, (layout, _, _) in layers.items() if layout.offset}
    assert not any("lora_offset" in key for key in joined)
    assert same(split(joined, ranks, "here"), state)
    assert same(state, before)  # neither writes into what it was given
    assert all(tensor.is_contiguous() for tensor in split(joined, ranks, "here").values())
    for name, (layout, d_out, d_in) in layers.items():
        assert joined[weight_key(name, "A")].shape == (layout.disk_rank, d_in)
        assert joined[weight_key(name, "B")].shape == (d_out, layout.disk_rank)


@given(layouts, st.integers(0, 1000))
def test_join_makes_again_what_split_took_apart_bit_for_bit(layers, seed):
    joined = join(state_of(layers, seed), {name: layout for name, (layout, _, _) in layers.items()})
    ranks = {name: layout.rank for name, (layout, _, _) in layers.items() if layout.offset}
    again = join(split(joined, ranks, "here"), {name: layout for name, (layout, _, _) in layers.items()})
    assert same(again, joined)


@given(layouts, st.integers(0, 1000))
def test_the_joined_factors_are_the_adapter_less_its_start(layers, seed):
    state = state_of(layers, seed)
    joined = join(state, {name: layout for name, (layout, _, _) in layers.items()})
    for name, (layout, _, _) in layers.items():
        A, B = (state[weight_key(name, factor)].double() for factor in "AB")
        change = layout.scaling * B @ A
        if layout.offset:
            A0, B0 = (state[offset_key(name, factor)].double() for factor in "AB")
            change -= layout.scaling * B0 @ A0
        A, B = (joined[weight_key(name, factor)].double() for factor in "AB")
        torch.testing.assert_close(layout.scaling * B @ A, change, rtol=1e-12, atol=1e-12)


def test_an_offset_is_joined_in_the_factors_dtype():
    layers = {"fc": (LayerLayout(rank=2, scaling=1.0, offset=True), 5, 7)}
    state = state_of(layers, dtype=torch.bfloat16)
    joined = join(state, {"fc": layers["fc"][0]})
    assert joined[weight_key("fc", "A")].dtype == joined[weight_key("fc", "B")].dtype == torch.bfloat16
    assert torch.equal(joined[weight_key("fc", "B")][:, 2:], -state[offset_key("fc", "B")].bfloat16())


@pytest.mark.parametrize(
    "change",
    [
        lambda state, A, B: state.pop(A),
        lambda state, A, B: state.pop(B),
        lambda state, A, B: state.update({A: state[A][:3]}),
        lambda state, A, B: state.update({B: state[B][:, :3]}),
    ],
    ids=["no A", "no B", "A of another rank", "B of another rank"],
)
def test_split_refuses_a_layer_that_was_changed(change):
    layers = {"block.fc": (LayerLayout(rank=2, scaling=1.0, offset=True), 5, 7)}
    joined = join(state_of(layers), {"block.fc": layers["block.fc"][0]})
    change(joined, weight_key("block.fc", "A"), weight_key("block.fc", "B"))
    with pytest.raises(SaveError, match=r"dir/x: layer block\.fc is not a LoRA of rank 4, as loraga\.json says"):
        split(joined, {"block.fc": 2}, "dir/x")


# ---- the recipe


def test_a_recipe_survives_json():
    recipe = SplitRecipe(config=CONFIG, ranks={"a.b": 4, "c": 8}, folded=True, version="0.1.0")
    assert SplitRecipe.from_dict(json.loads(json.dumps(recipe.to_dict())), "here") == recipe


@pytest.mark.parametrize("found", [FORMAT + 1, None, "1"])
def test_a_recipe_of_another_format_is_refused(found):
    data = {**SplitRecipe(config=CONFIG, ranks={}, folded=False, version="9").to_dict(), "format": found}
    with pytest.raises(SaveError, match=rf"loraga\.json has format {found!r}; this version of loraga reads format 1"):
        SplitRecipe.from_dict(data, "loraga.json")


DAMAGES = {
    **{f"no {key}": {key: None} for key in ("config", "ranks", "folded", "version")},
    "ranks are a list": {"ranks": [4]},
    "a rank is a word": {"ranks": {"a": "four"}},
    "a rank is null": {"ranks": {"a": None}},
    "config is a list": {"config": ["r"]},
    **{f"config without {key}": {"config": {k: v for k, v in CONFIG.items() if k != key}} for key in CONFIG},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_recipe_is_refused(damage):
    data = {**SplitRecipe(config=CONFIG, ranks={"a": 4}, folded=False, version="0.1.0").to_dict(), **damage}
    data = {key: value for key, value in data.items() if value is not None}
    with pytest.raises(LoragaError, match=r"some/loraga\.json is damaged"):
        SplitRecipe.from_dict(data, "some/loraga.json")


# ---- the config, read by PEFT itself


class Block(nn.Module):
    """Names of which one ends in another, and one that differs from another by a dot only."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 12)
        self.out = nn.Linear(12, 9)
        self.layers = nn.ModuleDict(
            {str(i): nn.ModuleDict({"fc": nn.Linear(12, 12), "out": nn.Linear(12, 12)}) for i in (1, 11)}
        )
        self.layersx1 = nn.ModuleDict({"fc": nn.Linear(12, 12)})

    def forward(self, x):
        for layer in self.layers.values():
            x = x + torch.tanh(layer["out"](torch.tanh(layer["fc"](x))))
        return self.out(torch.tanh(self.layersx1["fc"](self.fc(x))))


CONFIGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "use_rslora": True,
        "rank_pattern": {"fc": 3, r"layers\.11\.fc": 5, "^out": 2},
        "alpha_pattern": {"out": 7, r"layers\.\d+\.fc": 11},
    },
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("without_offset", [(), ("layers.1.fc", "out"), "all"])
def test_plain_peft_loads_what_was_joined(tmp_path, config, without_offset):
    torch.manual_seed(0)
    base = Block()
    weights = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=["fc", "out"], **config))
    lora = {name.removeprefix("base_model.model."): m for name, m in model.named_modules() if hasattr(m, "lora_A")}
    layers = {
        name: LayerLayout(
            rank=module.r["default"],
            scaling=module.scaling["default"],
            offset=without_offset != "all" and name not in without_offset,
        )
        for name, module in lora.items()
    }
    if config.get("rank_pattern"):
        assert len({layer.rank for layer in layers.values()}) >= 3
        assert len({layer.scaling for layer in layers.values()}) >= 4
    state = get_peft_model_state_dict(model)
    offsets = state_of({name: (layer, *lora[name].weight.shape) for name, layer in layers.items()}, seed=1)
    for key, tensor in offsets.items():
        if "lora" in key and "magnitude" not in key:
            state[key] = 0.3 * tensor
    model.save_pretrained(str(tmp_path))
    own = json.loads((tmp_path / "adapter_config.json").read_text())
    plain = plain_config(own, layers)
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == own
    save_file(join(state, layers), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain))

    fresh = Block()
    fresh.load_state_dict(weights)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path))
    assert loaded.peft_config["default"].use_rslora is False
    for name, layer in layers.items():
        module = loaded.base_model.model.get_submodule(name)
        assert module.r["default"] == layer.disk_rank
        assert module.scaling["default"] == pytest.approx(layer.scaling, rel=1e-12)
        change = layer.scaling * state[weight_key(name, "B")] @ state[weight_key(name, "A")]
        if layer.offset:
            change = change - layer.scaling * state[offset_key(name, "B")] @ state[offset_key(name, "A")]
        torch.testing.assert_close(module.get_delta_weight("default"), change, rtol=1e-5, atol=1e-5)
    x = torch.randn(6, 12)
    folded = Block()
    folded.load_state_dict(weights)
    with torch.no_grad():
        for name, layer in layers.items():
            change = state[weight_key(name, "B")] @ state[weight_key(name, "A")]
            if layer.offset:
                change = change - state[offset_key(name, "B")] @ state[offset_key(name, "A")]
            folded.get_submodule(name).weight += layer.scaling * change
        torch.testing.assert_close(loaded(x), folded(x), rtol=1e-5, atol=1e-5)


def test_plain_config_keeps_everything_it_does_not_have_to_change():
    own = {**CONFIG, "init_lora_weights": "gaussian", "lora_dropout": 0.1, "bias": "lora_only", "peft_type": "LORA"}
    plain = plain_config(own, {"fc": LayerLayout(rank=4, scaling=8.0, offset=True)})
    assert {key: plain[key] for key in ("lora_dropout", "bias", "peft_type")} == {
        "lora_dropout": 0.1,
        "bias": "lora_only",
        "peft_type": "LORA",
    }
    assert (plain["r"], plain["lora_alpha"], plain["use_rslora"], plain["init_lora_weights"]) == (8, 64, False, True)
    assert (plain["rank_pattern"], plain["alpha_pattern"]) == ({}, {})
    assert own["r"] == 4
