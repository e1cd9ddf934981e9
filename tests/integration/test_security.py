"""Nothing that comes with data, adapters, checkpoints or models is run: a trap in each place, and it never springs."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import loraga
from loraga.cli import main
from tests import models
from tests.cli.workplace import build
from tests.integration.common import adapter_state, assert_same, base, started

RECIPE = """\
model: tiny
data: rows.jsonl
held_out_rows: 2
prompt: question
target: answer
template: none
rank: 2
learning_rate: 1e-3
max_steps: 4
save_steps: 2
per_device_train_batch_size: 2
gradient_batches: 1
max_new_tokens: 2
output_dir: run
"""


def code_of(words):
    try:
        return main(words)
    except SystemExit as end:  # argparse's way
        return end.code


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return Path.mkdir, (Path(self.marker), 0o755, True, True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workplace with a finished run in it."""
    folder = tmp_path_factory.mktemp("workplace")
    build(folder)
    (folder / "train.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "train.yaml"]) == 0
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of the workplace, which is the working directory."""
    folder = tmp_path / "place"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def marker(tmp_path, record_property):
    """What a trap would make; a trap of each kind is seen to spring first."""
    marker = tmp_path / "sprung"
    for spring in (lambda: pickle.loads(pickle.dumps(Trap(marker))), lambda: load_by_torch(marker)):
        spring()
        assert marker.is_dir()
        marker.rmdir()
    record_property("traps", 1)
    yield marker
    assert not marker.exists(), "the trap has sprung"


def load_by_torch(marker):
    trap(marker.with_name("trap.pt"), marker)
    torch.load(marker.with_name("trap.pt"), weights_only=False)


def trap(path: Path, marker: Path, kind: str = "torch") -> None:
    """A file that torch, or pickle, would unpickle."""
    if kind == "torch":
        torch.save({"state_dict": Trap(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(marker)))


KINDS = ("torch", "pickle")


# ---- adapters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "training_args.bin", "optimizer.pt"])
def test_a_pickle_beside_an_adapter_is_ignored(marker, tmp_path, name, kind):
    model = started()
    model.save_pretrained(tmp_path / "adapter")
    trap(tmp_path / "adapter" / name, marker, kind)
    assert_same(adapter_state(loraga.load(base(), tmp_path / "adapter")), adapter_state(model))
    model.load_adapter(str(tmp_path / "adapter"), "default")
    loraga.export(loraga.load(base(), tmp_path / "adapter"), tmp_path / "out")
    assert main(["doctor", str(tmp_path / "adapter")]) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_pickle_instead_of_an_adapters_weights_is_refused(marker, tmp_path, kind, is_ours):
    adapter = tmp_path / "adapter"
    model = started() if is_ours else models.with_lora(base())
    model.save_pretrained(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    trap(adapter / "adapter_model.bin", marker, kind)
    with pytest.raises(loraga.SaveError, match=r"holds no adapter_model\.safetensors"):
        loraga.load(base(), adapter)
    with pytest.raises(loraga.SaveError, match=r"holds no adapter_model\.safetensors"):
        started().load_adapter(str(adapter), "default")
    assert main(["doctor", str(adapter)]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_by_the_name_of_safe_weights_is_refused(marker, place, kind):
    for file in ("run/adapter/adapter_model.safetensors", "gradients.safetensors"):
        trap(place / file, marker, kind)
    with pytest.raises(loraga.SaveError, match=r"adapter_model\.safetensors is damaged"):
        loraga.load(base(), place / "run" / "adapter")
    with pytest.raises(loraga.GradientFileError, match="is damaged or no safetensors file"):
        loraga.load_gradients(place / "gradients.safetensors")
    assert main(["train", "train.yaml", "output_dir=fresh", "gradients=gradients.safetensors"]) != 0
    assert main(["evaluate", "train.yaml"]) != 0
    assert main(["export", "run/adapter", "out"]) != 0
    assert main(["doctor", "run/adapter"]) == 1


@pytest.mark.parametrize("command", ["evaluate train.yaml --adapter run/adapter", "export run/adapter out"])
def test_the_commands_refuse_an_adapter_of_which_the_weights_are_a_pickle(marker, place, capsys, command):
    (place / "run" / "adapter" / "adapter_model.safetensors").unlink()
    trap(place / "run" / "adapter" / "adapter_model.bin", marker)
    assert main(command.split()) != 0
    assert "pickle" in capsys.readouterr().err


# ---- a run that goes on


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_in_a_checkpoint_is_never_unpickled_when_a_run_goes_on(marker, place, name, kind, capsys):
    run = place / "run"
    for done in ("trained.json", "metrics.json"):
        (run / done).unlink()
    shutil.rmtree(run / "checkpoint-4")
    trap(run / "checkpoint-2" / name, marker, kind)
    code = main(["train", "train.yaml"])
    said = capsys.readouterr().err
    if name == "training_args.bin":
        assert code == 0, said  # nobody reads it
    elif kind == "pickle":
        assert code == 0, said  # not what torch writes, so the checkpoint is set aside
        assert (run / "incomplete-checkpoint-2").is_dir()
    else:
        assert code != 0
        assert "holds more than torch reads safely" in said


# ---- data and recipes


@pytest.mark.parametrize("data", ["rows.pkl", "rows.pickle", "rows.parquet", "rows.jsonl", "rows.csv", "pickled"])
def test_a_pickle_for_data_is_refused(marker, place, data):
    (place / "pickled").mkdir()
    trap(place / "pickled" / "train.pkl" if data == "pickled" else place / data, marker, "pickle")
    assert main(["train", "train.yaml", "output_dir=fresh", f"data={data}"]) != 0


def test_the_data_sets_library_is_not_asked_to_unpickle(marker, place):
    trap(place / "rows.pkl", marker, "pickle")
    recipe = RECIPE.replace("data: rows.jsonl", "data: pandas\ndata_options: {data_files: rows.pkl}")
    (place / "pandas.yaml").write_text(recipe.replace("output_dir: run", "output_dir: fresh"))
    assert main(["train", "pandas.yaml"]) != 0


@pytest.mark.parametrize("key", ["rank", "model", "data_options", "output_dir"])
@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir"])
def test_a_recipes_tags_call_nothing(marker, place, key, tag):
    value = f'!!python/{tag} ["{marker}"]'
    (place / "tagged.yaml").write_text(RECIPE + f"{key}: {value}\n" if key not in RECIPE else RECIPE.replace(
        next(line for line in RECIPE.splitlines() if line.startswith(key)), f"{key}: {value}"
    ))  # fmt: skip
    for words in (["train"], ["evaluate"], ["estimate"], ["config"], ["init", "--output", "fresh"]):
        assert code_of([*words, "tagged.yaml"]) == 2
    code = code_of(["train", "train.yaml", f"{key}={value}", "seed=5"])
    assert code == 2 or key == "output_dir"  # there any words name a folder


# ---- models


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_models_pickled_weights_are_not_unpickled(marker, place, kind):
    (place / "tiny" / "model.safetensors").unlink()
    trap(place / "tiny" / "pytorch_model.bin", marker, kind)
    assert main(["train", "train.yaml", "output_dir=fresh"]) != 0
    assert main(["evaluate", "train.yaml"]) != 0
    assert main(["export", "run/adapter", "out", "--model", "tiny"]) != 0


@pytest.fixture
def with_code(place, marker):
    """The base model, with code of its own that makes the marker when it is imported."""
    config = json.loads((place / "tiny" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "trap.TrapConfig", "AutoModelForCausalLM": "trap.TrapModel"}
    config["model_type"] = "trapped"
    (place / "tiny" / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((place / "tiny" / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["trap.TrapTokenizer", "trap.TrapTokenizer"]}
    tokenizer["tokenizer_class"] = "TrapTokenizer"
    (place / "tiny" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (place / "tiny" / "trap.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(marker)!r}).mkdir(exist_ok=True)\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class TrapConfig(LlamaConfig): model_type = 'trapped'\n"  # classes of its own: transformers marks them
        "class TrapModel(LlamaForCausalLM): config_class = TrapConfig\n"
        "class TrapTokenizer(PreTrainedTokenizerFast): pass\n"
    )
    return place


def test_code_that_comes_with_a_model_is_not_run_unless_asked(with_code, marker, monkeypatch, capsys):
    for command in (
        "train train.yaml output_dir=fresh",
        "evaluate train.yaml",
        "estimate train.yaml --output g.safetensors",
        "export run/adapter out --model tiny",
    ):
        assert main(command.split()) != 0, command
        assert "trust_remote_code" in capsys.readouterr().err or command.startswith("evaluate")
        assert not marker.exists(), command
    main(["doctor", "run/adapter"])
    assert not marker.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(with_code / "modules"))
    main(["train", "train.yaml", "output_dir=fresh", "trust_remote_code=true"])
    assert marker.is_dir(), "the trap would never have sprung"
    marker.rmdir()


def test_a_saved_model_with_code_is_not_run_by_an_evaluation(with_code, marker):
    assert main(["evaluate", "train.yaml", "model=no_end", "--adapter", "tiny"]) != 0
    assert not marker.exists()


def test_a_chat_template_reaches_no_module(place, marker):
    code = "{{ cycler.__init__.__globals__.os.mkdir('" + str(marker) + "') }}{{ messages[0]['content'] }}"
    tokenizer = json.loads((place / "tiny" / "tokenizer_config.json").read_text())
    (place / "tiny" / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": code}))
    (place / "tiny" / "chat_template.jinja").write_text(code)
    assert main(["train", "train.yaml", "output_dir=fresh", "template=chat"]) != 0


def test_an_archive_that_torch_wrote_is_what_the_traps_are(tmp_path, marker):
    trap(tmp_path / "trap.pt", marker)
    assert zipfile.is_zipfile(tmp_path / "trap.pt")
