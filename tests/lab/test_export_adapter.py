import io
import json
import math
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.loraga import preprocess_loraga
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import loraga
from loraga.cli import main
from loraga.errors import SaveError
from loraga.lab.base_model import BaseModel, require_loadable
from loraga.lab.errors import DataError, SettingsError
from loraga.lab.export_adapter import export_adapter
from loraga.lab.initial import init
from loraga.lab.preparation import prepare
from loraga.lab.starts import start
from tests.integration.common import eval_logits
from tests.models import relative_difference, train

from .conftest import byte_tokenizer, tiny_model

PROBE = {"input_ids": torch.arange(40, 88).reshape(2, 24)}


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """(run folder with a saved LoRA-GA adapter of rank 4 that a few steps have moved, its logits in memory)."""
    folder, asked = tmp_path_factory.mktemp("run"), recipe(method="lora_ga")
    base = BaseModel.of(asked).load()
    data = prepare(asked, Console(file=io.StringIO())).data_for(base)
    batches = data.micro_batches(asked, 0, 3)
    model = start(base, asked, batches).model
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=2e-2)
    for batch in batches:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.save_pretrained(str(folder / "adapter"))
    return folder, eval_logits(model, PROBE)


def plain(folder, adapter):
    """The adapter on its base as plain PEFT loads it."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter)).eval()


def changes(model):
    """{layer: eta B A} in float64, of a PeftModel."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {
        name: module.scaling["default"]
        * (module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()).detach()
        for name, module in layers.items()
    }


def test_a_trained_run_differs_from_its_base(trained, tiny_folder):
    base = eval_logits(AutoModelForCausalLM.from_pretrained(tiny_folder), PROBE)

    assert relative_difference(trained[1], base) > 0.05


@pytest.mark.parametrize("named", ["the run", "the adapter"])
def test_an_exported_adapter_is_a_plain_lora_of_the_same_function(trained, tiny_folder, tmp_path, named):
    run, logits = trained

    written = export_adapter(run if named == "the run" else run / "adapter", tmp_path / "out", None, False, None)

    model = plain(tiny_folder, tmp_path / "out")
    assert relative_difference(eval_logits(model, PROBE), logits) <= 1e-5
    assert set(written.ranks.values()) == {8}  # twice the trained rank: the start is subtracted beside it
    assert (written.kind, written.relative_error) == ("adapter", 0)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder)
    assert str(config["init_lora_weights"]) == "True"


def test_a_compressed_adapter_is_the_best_of_its_rank_in_every_layer(trained, tiny_folder, tmp_path):
    run, _ = trained

    written = export_adapter(run, tmp_path / "out", 3, False, None)

    whole, kept = changes(plain(tiny_folder, run / "adapter")), changes(plain(tiny_folder, tmp_path / "out"))
    assert kept.keys() == whole.keys()
    assert len(kept) == 14
    lost = total = 0.0
    for layer, change in whole.items():
        U, S, Vh = torch.linalg.svd(change, full_matrices=False)
        best = (U[:, :3] * S[:3]) @ Vh[:3]
        assert relative_difference(kept[layer], best) < 1e-3
        lost, total = lost + float((S[3:] ** 2).sum()), total + float((S**2).sum())
    assert written.relative_error == pytest.approx(math.sqrt(lost / total), rel=1e-3)
    assert 0.01 < written.relative_error < 1
    assert set(written.ranks.values()) == {3}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {config["r"], *config["rank_pattern"].values()} == {3}


def test_a_rank_that_holds_everything_loses_nothing(trained, tiny_folder, tmp_path):
    run, logits = trained

    written = export_adapter(run, tmp_path / "out", 8, False, None)

    assert written.relative_error < 1e-5
    assert relative_difference(eval_logits(plain(tiny_folder, tmp_path / "out"), PROBE), logits) <= 1e-5


def test_a_merged_model_is_loaded_by_transformers_alone_with_its_tokenizer(trained, tmp_path):
    run, logits = trained

    written = export_adapter(run, tmp_path / "out", None, True, None)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert relative_difference(eval_logits(model, PROBE), logits) <= 1e-5
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out")("2 + 2")["input_ids"] == byte_tokenizer()("2 + 2")["input_ids"]
    )
    assert (written.kind, written.ranks) == ("merged", {})


def test_what_is_exported_stays_as_it_was(trained, tmp_path):
    run, _ = trained
    before = {path.name: path.read_bytes() for path in (run / "adapter").iterdir()}

    for number, (rank, merge) in enumerate([(None, False), (2, False), (None, True)]):
        export_adapter(run, tmp_path / str(number), rank, merge, None)

    assert {path.name: path.read_bytes() for path in (run / "adapter").iterdir()} == before


def test_an_encoder_decoders_adapter_is_merged_too(recipe, tiny_t5_folder, tmp_path):
    asked = recipe(model=str(tiny_t5_folder), method="gaussian", rank=2)
    base = BaseModel.of(asked).load()
    data = prepare(asked, Console(file=io.StringIO())).data_for(base)
    (batch,) = data.micro_batches(asked, 0, 1)
    model = start(base, asked, [batch]).model
    for weight in model.parameters():
        weight.data += 0.1 * weight.requires_grad
    model.save_pretrained(str(tmp_path / "adapter"))

    export_adapter(tmp_path / "adapter", tmp_path / "out", None, True, None)

    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert relative_difference(eval_logits(merged, batch), eval_logits(model, batch)) <= 1e-5
    with model.disable_adapter():
        assert relative_difference(eval_logits(merged, batch), eval_logits(model, batch)) > 1e-2


# --- an adapter that another tool has trained on a residual base


@pytest.fixture(scope="module")
def of_a_residual_base(recipe, tmp_path_factory):
    """(folder with residual/ and trained/, logits of what was trained)."""
    folder = tmp_path_factory.mktemp("residual")
    init(recipe(), folder / "residual", Console(file=io.StringIO()), residual=True)
    base = AutoModelForCausalLM.from_pretrained(folder / "residual").eval()
    model = PeftModel.from_pretrained(base, str(folder / "residual" / "adapter"), is_trainable=True)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=2e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(**PROBE, labels=PROBE["input_ids"]).loss.backward()
        optimizer.step()
    model.save_pretrained(str(folder / "trained"))
    return folder, eval_logits(model, PROBE)


@pytest.mark.parametrize("named", [None, "residual", "original"])
def test_it_becomes_a_plain_lora_of_the_original_base(of_a_residual_base, tiny_folder, tmp_path, named):
    folder, logits = of_a_residual_base
    name = {None: None, "residual": str(folder / "residual"), "original": str(tiny_folder)}[named]

    written = export_adapter(folder / "trained", tmp_path / "out", None, False, name)

    assert relative_difference(eval_logits(plain(tiny_folder, tmp_path / "out"), PROBE), logits) <= 1e-5
    assert set(written.ranks.values()) == {8}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder)


@pytest.mark.parametrize("named", [None, "original"])
def test_it_is_merged_with_its_tokenizer(of_a_residual_base, tiny_folder, tmp_path, named):
    folder, logits = of_a_residual_base

    export_adapter(folder / "trained", tmp_path / "out", None, True, None if named is None else str(tiny_folder))

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert relative_difference(eval_logits(merged, PROBE), logits) <= 1e-5
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert not (tmp_path / "out" / "loraga_residual.json").exists()


def test_it_is_compressed(of_a_residual_base, tmp_path):
    folder, _ = of_a_residual_base

    assert set(export_adapter(folder / "trained", tmp_path / "out", 3, False, None).ranks.values()) == {3}


def test_a_residual_base_that_has_moved_is_named(of_a_residual_base, tiny_folder, tmp_path):
    folder, logits = of_a_residual_base
    shutil.copytree(folder / "residual", tmp_path / "moved")
    shutil.copytree(folder / "trained", tmp_path / "trained")
    file = tmp_path / "trained" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/was/here"}))

    export_adapter(tmp_path / "trained", tmp_path / "out", None, False, str(tmp_path / "moved"))

    assert relative_difference(eval_logits(plain(tiny_folder, tmp_path / "out"), PROBE), logits) <= 1e-5


def test_it_is_not_evaluated_as_if_it_were_for_the_original_base(of_a_residual_base):
    with pytest.raises(SettingsError, match=r"is for the residual base .*write it by loraga export as a plain LoRA"):
        require_loadable(of_a_residual_base[0] / "trained")


# --- the base model


@pytest.fixture
def nameless(trained, tmp_path):
    """A copy of the adapter that names no base model."""
    shutil.copytree(trained[0] / "adapter", tmp_path / "nameless")
    file = tmp_path / "nameless" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    return tmp_path / "nameless"


def test_an_adapter_that_names_no_base_model_needs_one_named(nameless, tmp_path):
    with pytest.raises(SettingsError, match=r"adapter_config\.json names no base model; name it with --model"):
        export_adapter(nameless, tmp_path / "out", None, True, None)

    assert not (tmp_path / "out").exists()


def test_a_named_base_model_is_taken_in_the_place_of_the_adapters(nameless, tmp_path):
    other = tiny_model(seed=7)
    other.save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")

    export_adapter(nameless, tmp_path / "out", None, True, str(tmp_path / "other"))

    expected = eval_logits(loraga.load(other, nameless), PROBE)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert relative_difference(eval_logits(merged, PROBE), expected) <= 1e-5


def test_a_base_model_that_is_gone_is_one_line(trained, tmp_path):
    with pytest.raises(DataError, match=r"of \S+/nowhere cannot be loaded"):
        export_adapter(trained[0], tmp_path / "out", None, False, str(tmp_path / "nowhere"))

    assert not (tmp_path / "out").exists()


# --- adapters whose start was subtracted from their base


@pytest.fixture(scope="module")
def rival(tiny_folder, tmp_path_factory):
    """PEFT's own lora_ga on the tiny model: the folders of its start, the trained adapter and its base; its logits."""
    folder = tmp_path_factory.mktemp("rival")
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    config = LoraConfig(
        r=2,
        lora_alpha=4,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
    )
    batch = {**PROBE, "labels": PROBE["input_ids"]}

    def train_step():
        (30 * base(**batch).loss).backward()

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        torch.manual_seed(0)
        preprocess_loraga(base, config, train_step)
        model = get_peft_model(base, config).eval()
    model.save_pretrained(folder / "start")
    train(model, [batch])
    model.save_pretrained(folder / "trained")
    logits = eval_logits(model, PROBE)
    model.unload().save_pretrained(folder / "changed")
    return folder, logits


@pytest.mark.parametrize(("option", "name"), [("--initial", "start"), ("--changed-base", "changed")])
@pytest.mark.parametrize("also", [[], ["--rank", "4"], ["--merge"]], ids=str)
def test_the_command_converts_pefts_lora_ga(rival, tiny_folder, tmp_path, option, name, also, capsys):
    folder, logits = rival
    words = ["export", str(folder / "trained"), str(tmp_path / "out"), option, str(folder / name), *also]

    assert main([*words, "--json", "--model", str(tiny_folder)]) == 0

    written = json.loads(capsys.readouterr().out)
    if also == ["--merge"]:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    else:
        assert set(written["ranks"].values()) == {4}
        model = plain(tiny_folder, tmp_path / "out")
    assert relative_difference(eval_logits(model, PROBE), logits) <= 1e-5
    assert relative_difference(eval_logits(plain(tiny_folder, folder / "trained"), PROBE), logits) > 1e-2


def test_without_either_the_command_names_both_and_ends_with_2(rival, tmp_path, capsys):
    assert main(["export", str(rival[0] / "trained"), str(tmp_path / "out")]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "makes a plain LoRA of it with --initial and the adapter that was saved before training" in line
    assert "--changed-base" in line
    assert not (tmp_path / "out").exists()


def test_a_start_of_another_adapter_ends_with_1(rival, tiny_folder, tmp_path, capsys):
    folder, _ = rival
    words = ["export", str(folder / "trained"), str(tmp_path / "out"), "--model", str(tiny_folder)]

    assert main([*words, "--initial", str(folder / "trained")]) == 1
    assert main([*words, "--changed-base", str(tiny_folder)]) == 1

    first, second = capsys.readouterr().err.splitlines()
    assert "is the trained adapter itself; name what was saved before training" in first
    assert "has the weights of the base in every layer of the adapter" in second
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_needs_no_start_is_given_none(trained, tmp_path):
    with pytest.raises(
        SettingsError, match="is for the original base as it is; leave --initial and --changed-base away"
    ):
        export_adapter(trained[0], tmp_path / "out", None, False, None, initial=trained[0] / "adapter")


# --- what is no adapter


def test_a_folder_without_an_adapter_is_refused(tiny_folder, tmp_path):
    with pytest.raises(SettingsError, match=r"llama holds no adapter_config\.json, so it is no adapter's folder"):
        export_adapter(tiny_folder, tmp_path / "out", None, False, None)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_configuration_is_one_line(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)

    with pytest.raises(SaveError, match=r"adapter_config\.json is damaged: "):
        export_adapter(tmp_path, tmp_path / "out", None, False, None)


@pytest.mark.parametrize(
    ("rank", "merge", "message"), [(3, True, "exclude each other"), (0, False, "must be a positive whole number")]
)
def test_a_rank_that_means_nothing_is_refused_and_nothing_is_written(trained, tmp_path, rank, merge, message):
    with pytest.raises(loraga.LoragaError, match=message):
        export_adapter(trained[0], tmp_path / "out", rank, merge, None)

    assert not (tmp_path / "out").exists()
