import json
import shutil
import sys
from pathlib import Path

import gguf
import pytest
import torch
from transformers import T5ForConditionalGeneration
from transformers.utils import is_gguf_available

from loraga.lab import smollm2
from loraga.lab.base_model import BaseModel
from loraga.lab.errors import DataError
from tests.models import build

from .conftest import byte_tokenizer, tiny_model, tiny_t5, use_tiny_model

TEXT = "2 + 2 = é<|im_end|>"
OF_GGUF = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(model, file):
    """Writes a Llama and the tokenizer of single bytes as llama.cpp's converter does, with nothing quantised."""
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(byte_tokenizer().convert_ids_to_tokens(range(258)))
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_scores([0.0] * 258)
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_pad_token_id(257)
    for name, weight in model.state_dict().items():
        *_, kind, _ = parts = name.split(".")
        if kind in ("q_proj", "k_proj"):  # llama.cpp keeps the two halves of a rotation side by side
            heads = config.num_attention_heads
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        block = f"blk.{parts[2]}." if parts[1] == "layers" else ""
        writer.add_tensor(f"{block}{OF_GGUF[kind]}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_model(), file)
    return file


def assert_is(model, expected):
    assert type(model) is type(expected)
    assert not model.training
    state = expected.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


def ids(tokenizer):
    return tokenizer(TEXT)["input_ids"]


def test_a_folder_is_loaded_in_eval_mode_with_its_tokenizer(tiny_folder):
    base = BaseModel(str(tiny_folder))

    assert_is(base.load(), tiny_model())
    assert ids(base.load_tokenizer()) == ids(byte_tokenizer())
    assert base.address == str(tiny_folder)


def test_a_folder_may_be_written_with_a_tilde(tiny_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_folder.parent))

    assert_is(BaseModel(f"~/{tiny_folder.name}").load(), tiny_model())


def test_a_gguf_file_is_the_model_that_was_written_into_it_and_can_be_saved(gguf_file, tmp_path):
    base = BaseModel(str(gguf_file))

    model = base.load()

    assert_is(model, tiny_model())
    assert ids(base.load_tokenizer()) == ids(byte_tokenizer())
    assert base.load_tokenizer().eos_token_id == 257
    model.save_pretrained(tmp_path)
    assert_is(BaseModel(str(tmp_path)).load(), tiny_model())


def test_smollm2_is_read_from_the_cache(monkeypatch, tmp_path):
    use_tiny_model(monkeypatch, tmp_path)

    base = BaseModel(smollm2.NAME)

    assert_is(base.load(), tiny_model())
    assert ids(base.load_tokenizer()) == ids(byte_tokenizer())
    assert base.address == str(tmp_path / "cache" / smollm2.NAME)
    assert not base.is_encoder_decoder


def test_a_folder_of_the_name_of_smollm2_is_that_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAGA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    other = tiny_model(seed=5)
    other.save_pretrained(smollm2.NAME)

    assert_is(BaseModel(smollm2.NAME).load(), other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_of_the_dtype_that_was_asked_for(tiny_folder, dtype):
    model = BaseModel(str(tiny_folder), dtype).load()

    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}


def test_dtype_auto_is_that_of_the_saved_weights_and_the_default_is_not(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)

    assert {weight.dtype for weight in BaseModel(str(tmp_path), "auto").load().parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in BaseModel(str(tmp_path)).load().parameters()} == {torch.float32}


def test_a_recipes_base_model_is_its_name_and_dtype(recipe, tiny_folder):
    base = BaseModel.of(recipe(dtype="bfloat16", trust_remote_code=True))

    assert base == BaseModel(str(tiny_folder), "bfloat16", trust_remote_code=True)


def test_an_encoder_decoder_is_loaded_as_one(tiny_t5_folder):
    base = BaseModel(str(tiny_t5_folder))

    model = base.load()

    assert isinstance(model, T5ForConditionalGeneration)
    assert_is(model, tiny_t5())


@pytest.mark.parametrize(("make", "expected"), [(tiny_model, False), (tiny_t5, True)])
def test_whether_it_is_an_encoder_decoder_is_known_without_weights_and_tokenizer(tmp_path, make, expected):
    make().config.save_pretrained(tmp_path)

    assert BaseModel(str(tmp_path)).is_encoder_decoder is expected


# --- what cannot be loaded


def changed_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


DAMAGES = {
    "half the weights": lambda folder: cut(folder / "model.safetensors", 5000),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights of another shape": lambda folder: changed_config(folder, hidden_size=64),
    "half a configuration": lambda folder: cut(folder / "config.json", 40),
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "a configuration of a wrong type": lambda folder: changed_config(folder, hidden_size="many"),
    "an unknown architecture": lambda folder: changed_config(folder, model_type="nonesuch", architectures=["None"]),
    "no language model": lambda folder: changed_config(folder, model_type="vit", architectures=["ViTModel"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line_with_its_name_and_a_remedy(tiny_folder, tmp_path, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    DAMAGES[damage](folder)

    with pytest.raises(
        DataError, match=r"^the (model|configuration) of \S+/damaged cannot be loaded: name a folder"
    ) as e:
        BaseModel(str(folder)).load()

    assert "\n" not in str(e.value)


def test_a_model_that_lacks_weights_is_not_filled_up_with_random_ones(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "few")
    changed_config(tmp_path / "few", num_hidden_layers=3)

    with pytest.raises(DataError, match=r"^the model of \S+/few lacks 9 weights, such as model\.layers\.2\."):
        BaseModel(str(tmp_path / "few")).load()


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Gemma", "GPT-2", "OPT", "T5"])
def test_no_architectures_tied_weights_count_as_lacking(tmp_path, name):
    model = build(name)
    model.save_pretrained(tmp_path)

    assert_is(BaseModel(str(tmp_path)).load(), model)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path):
    tiny_model().save_pretrained(tmp_path / "bare")

    with pytest.raises(DataError, match=r"^the tokenizer of \S+/bare cannot be loaded: name a folder") as error:
        BaseModel(str(tmp_path / "bare")).load_tokenizer()

    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [2, 20, 1000, 50_000])
def test_a_gguf_file_cut_short_is_one_line(gguf_file, tmp_path, size):
    shutil.copy(gguf_file, tmp_path / "cut.gguf")
    cut(tmp_path / "cut.gguf", size)

    with pytest.raises(DataError, match=r"^the (model|configuration) of \S+/cut\.gguf cannot be loaded") as error:
        BaseModel(str(tmp_path / "cut.gguf")).load()

    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at-all", "nowhere/model.gguf", "nobody/no-such-model"])
@pytest.mark.parametrize("load", [BaseModel.load, BaseModel.load_tokenizer])
def test_a_name_that_leads_nowhere_is_one_line(tmp_path, monkeypatch, name, load):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    with pytest.raises(
        DataError, match=rf"of {name} cannot be loaded: name a folder, a GGUF file or a model on"
    ) as error:
        load(BaseModel(name))

    assert "\n" not in str(error.value)


@pytest.fixture
def without_gguf(monkeypatch):
    """As if the package were not installed; transformers remembers what it found, so it is made to forget it."""
    is_gguf_available.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    yield
    is_gguf_available.cache_clear()


@pytest.mark.usefixtures("without_gguf")
def test_a_missing_package_is_one_line_too(gguf_file):
    with pytest.raises(DataError, match=r"^the configuration of \S+/tiny\.gguf cannot be loaded: .*gguf"):
        BaseModel(str(gguf_file)).load()


def test_nothing_is_loaded_before_it_is_asked_for(tmp_path):
    assert BaseModel(str(tmp_path / "nowhere")).name == str(tmp_path / "nowhere")
    assert not Path(tmp_path / "nowhere").exists()
