import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from loraga.lab import model_card
from loraga.lab.methods import METHODS
from loraga.lab.recipe import Recipe
from loraga.lab.recipe_check import load_recipe
from loraga.lab.run_folder import RunFolder

from .conftest import tiny_model

METRICS = {
    "steps": 60,
    "learning_rate": 0.00123456,
    "train_loss": 1.23456,
    "held_out": {
        "rows": 200, "loss": 0.98765, "metric": "exact_match", "accuracy": 0.425, "low": 0.3589, "high": 0.4942,
        "score": 0.425, "scores": {},
    },
}  # fmt: skip
PATTERN = r"---\n(.*?\n)---\n\n# "


@pytest.fixture(params=["base", 'a "quoted" \\ base: #1 ü'])
def base(request, tmp_path):
    tiny_model().save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


@pytest.fixture
def recipe(base):
    return Recipe(model=str(base), data="rows.jsonl", prompt="q", target="a", method="lora", held_out_rows=200)


def front_matter(card):
    return yaml.safe_load(re.match(PATTERN, card, re.DOTALL)[1])


def rows(card):
    found = re.findall(r"^\| (.+?) \| (.+?) \|$", card, re.MULTILINE)
    return dict(found)


def test_the_front_matter_is_what_the_hub_reads(recipe, base):
    assert front_matter(model_card.text(recipe, METRICS)) == {
        "base_model": str(base),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "loraga", "lora"],
    }


def test_the_figures_are_those_that_were_measured(recipe):
    assert rows(model_card.text(recipe, METRICS)) == {
        "steps": "60",
        "peak learning rate": "0.00123",
        "training loss, mean of the last ten logged steps": "1.2346",
        "loss on 200 held-out rows": "0.9877",
        "exact_match on these (95 % interval)": "42.5 % (35.9 to 49.4)",
    }


def test_what_was_not_measured_is_not_in_the_card(recipe):
    nothing = {**METRICS, "train_loss": None, "held_out": None}
    only_loss = {**METRICS, "held_out": {**METRICS["held_out"], "metric": "none", "accuracy": None, "score": None}}

    assert set(rows(model_card.text(recipe, nothing))) == {"steps", "peak learning rate"}
    assert not [name for name in rows(model_card.text(recipe, only_loss)) if "interval" in name]


def test_a_score_that_is_no_share_of_right_answers_is_shown_with_the_further_figures(recipe):
    found = {"metric": "gsm8k", "accuracy": None, "score": 0.31, "scores": {"peft_rule": 0.3012345}}

    shown = rows(model_card.text(recipe, {**METRICS, "held_out": {**METRICS["held_out"], **found}}))

    assert (shown["gsm8k on these"], shown["peft_rule on these"]) == ("0.3100", "0.3012")


def test_the_recipe_in_the_card_is_the_recipe(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("")
    (text,) = re.findall(r"```yaml\n(.*?)```", model_card.text(recipe, METRICS), re.DOTALL)
    Path("again.yaml").write_text(text, encoding="utf-8")

    assert load_recipe(Path("again.yaml")) == recipe


@pytest.mark.parametrize("method", METHODS)
def test_the_card_says_which_method_it_was(recipe, method):
    card = model_card.text(Recipe(model=recipe.model, data="d", method=method), METRICS)

    assert f"# {METHODS[method].title} of {recipe.model} on d" in card
    assert METHODS[method].what in card
    assert method in front_matter(card)["tags"]


def test_the_code_in_the_card_loads_the_adapter(recipe, tmp_path):
    folder = RunFolder(tmp_path / "run")
    made = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    made.save_pretrained(folder / "adapter")
    model_card.write(recipe, METRICS, folder)
    card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ids = torch.arange(7)[None]
    names = {}

    exec(code.replace('"this folder"', repr(str(folder / "adapter"))), names)

    with torch.no_grad():
        expected = made.eval()(input_ids=ids).logits
        torch.testing.assert_close(names["model"](input_ids=ids).logits, expected)
        assert not torch.allclose(tiny_model()(input_ids=ids).logits, expected)


def test_the_card_of_a_whole_model_lies_beside_it_and_loads_no_adapter(recipe, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    full = Recipe(model=recipe.model, data="d", method="full")

    model_card.write(full, METRICS, RunFolder(tmp_path / "run"))

    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "```python" not in card
    assert front_matter(card)["library_name"] == "transformers"


def test_the_code_says_what_else_the_base_model_needs(base, monkeypatch):
    # whether a model reads with an encoder is asked of its file, and no GGUF file can be written here
    monkeypatch.setattr("loraga.lab.model_card.BaseModel.is_encoder_decoder", False)

    card = model_card.text(Recipe(model=f"{base}/tiny.gguf", data="d", trust_remote_code=True), METRICS)

    assert ', gguf_file="tiny.gguf", trust_remote_code=True)\n' in card
