import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from loraga.lab.errors import SettingsError
from loraga.lab.evaluation import evaluate
from loraga.lab.examples import IGNORED, collator_for, encode_all
from loraga.lab.label_words import label_words
from loraga.lab.prompts import make_prompted
from loraga.lab.recipe import Recipe

from .conftest import Told, byte_tokenizer, tiny_model, tiny_t5

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("\n{{ m.content }}", "\n{% if m.role == 'assistant' %}## {% endif %}{{ m.content }}")
ROWS = [{"prompt": f"{'very ' * (n % 4)}film {n}: ", "target": "npq"[n * 5 % 3]} for n in range(10)]
JUDGED = {"labels": ["n", "p", "q"], "metric": "label_word", "held_out_rows": 1}


def with_words(words, pre_tokenizer, normalizer=None):
    """A tokenizer that knows these words as they are written, and all else as unknown."""
    backend = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(["?", "</s>", *words])}, unk_token="?")
    )
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="?")


def recipe_of(**keys):
    return Recipe(model="m", data="d", **{"prompt": "prompt", "target": "target", "template": "none", **keys})


def tokens_of(tokenizer, target="target", **keys):
    recipe = recipe_of(target=target, **keys)
    row = {"prompt": "a film", "target": recipe.labels[0]}
    return label_words(tokenizer, make_prompted([row], recipe, tokenizer, "rows")[0], recipe)


# --- the tokens


def test_a_label_is_the_token_with_the_space_that_its_target_begins_with():
    tokenizer = with_words(["no", "yes", "\u0120no", "\u0120yes"], pre_tokenizers.ByteLevel(add_prefix_space=False))

    assert tokens_of(tokenizer, labels=["no", "yes"]).tokens == (2, 3)
    assert tokens_of(tokenizer, target=" {target}", labels=["no", "yes"]).tokens == (4, 5)


def test_a_label_is_the_token_with_sentencepieces_mark():
    tokenizer = with_words(["no", "yes", "\u2581no", "\u2581yes"], pre_tokenizers.Metaspace())

    assert tokens_of(tokenizer, labels=["yes", "no"]).tokens == (5, 4)


def test_in_a_chat_a_label_is_the_token_after_the_marks_of_its_turn():
    for template, offset in ((CHATML, 0), (THINKING, 3)):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template

        words = tokens_of(tokenizer, template="auto", labels=["n", "p"])

        assert (words.offset, words.labels) == (offset, ("n", "p"))
        assert words.tokens == tuple(tokenizer("np")["input_ids"])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["n", "po"], r"the word po is 2 tokens here \(p, o\), and the class is told by one"),
        (["\u00e9", "n"], r"is 2 tokens here"),
    ],
)
def test_a_label_word_of_more_tokens_is_named_with_them(labels, said):
    with pytest.raises(SettingsError, match=said):
        tokens_of(byte_tokenizer(), labels=labels)


def test_a_space_that_is_a_token_of_its_own_is_shown():
    with pytest.raises(SettingsError, match="the word n is 2 tokens here \\(\u0120, n\\)"):
        tokens_of(byte_tokenizer(), target=" {target}", labels=["n", "p"])


def test_labels_that_are_one_token_are_named_with_it():
    lower = with_words(["no", "yes"], pre_tokenizers.Whitespace(), normalizers.Lowercase())

    with pytest.raises(SettingsError, match=r"no and No are the same token here \(no\)"):
        tokens_of(lower, labels=["no", "No"])


# --- the probabilities


def encoded(recipe, is_encoder_decoder=False, tokenizer=None):
    tokenizer = tokenizer or byte_tokenizer()
    made = make_prompted(ROWS, recipe, tokenizer, "rows")
    return encode_all(tokenizer, made, recipe, "rows", is_encoder_decoder).examples


def alone(model, example, tokens, offset=0):
    """The labels' probabilities in float64, of one row with no padding, up to where the label is predicted."""
    exact = copy.deepcopy(model).double().eval()
    before = [label for label in example.labels if label != IGNORED][:offset]
    inputs = {"input_ids": torch.tensor([list(example.prompt_ids)])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, *before]])
    else:
        inputs["input_ids"] = torch.tensor([[*example.prompt_ids, *before]])
    with torch.no_grad():
        likely = exact(**inputs).logits[0, -1].exp()[list(tokens)]
    return (likely / likely.sum()).tolist()


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()][1:]


@pytest.mark.parametrize(
    ("make", "template", "offset"),
    [(tiny_model, "none", 0), (tiny_t5, "none", 0), (tiny_model, "auto", 3)],
    ids=["causal", "encoder-decoder", "chat"],
)
def test_probabilities_are_those_of_the_row_alone_in_double_precision(make, template, offset, tmp_path):
    model, tokenizer = make(), byte_tokenizer()
    tokenizer.chat_template = THINKING if template == "auto" else None
    recipe = recipe_of(**JUDGED, template=template, per_device_eval_batch_size=4)
    examples = encoded(recipe, model.config.is_encoder_decoder, tokenizer)
    tokens = tokenizer("npq")["input_ids"]

    found = evaluate(model, tokenizer, examples, recipe, tmp_path / "rows.jsonl", {}, Told())

    lines = lines_of(tmp_path / "rows.jsonl")
    expected = [alone(model, each, tokens, offset) for each in examples]
    assert [list(line["probabilities"].values()) for line in lines] == [
        pytest.approx(each, rel=1e-4) for each in expected
    ]
    assert [line["answer"] for line in lines] == ["npq"[max(range(3), key=each.__getitem__)] for each in expected]
    assert [line["target"] for line in lines] == [row["target"] for row in ROWS]
    assert [line["right"] for line in lines] == [line["answer"] == line["target"] for line in lines]
    assert len({line["answer"] for line in lines}) > 1
    assert found.score == found.accuracy == sum(line["right"] for line in lines) / 10
    assert set(found.scores) == {"matthews"}


@pytest.mark.parametrize("make", [tiny_model, tiny_t5], ids=["causal", "encoder-decoder"])
def test_a_model_learns_the_classes(make, tmp_path):
    model, recipe = make(), recipe_of(**JUDGED)
    examples = encoded(recipe, model.config.is_encoder_decoder)
    collate = collator_for(byte_tokenizer(), model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(**collate(examples)).loss.backward()
        optimizer.step()

    found = evaluate(model, byte_tokenizer(), examples, recipe, tmp_path / "rows.jsonl", {}, Told())

    assert (found.score, found.scores) == (1.0, {"matthews": 1.0})


@pytest.mark.parametrize("make", [tiny_model, tiny_t5], ids=["causal", "encoder-decoder"])
def test_padding_is_in_no_loss(make):
    """A batch's loss is that of its rows alone, weighed by their target tokens: what pads them counts nowhere."""
    model = make()
    examples = encoded(recipe_of(labels=["n", "p", "q"]), model.config.is_encoder_decoder)
    collate = collator_for(byte_tokenizer(), model)
    assert len({len(each.input_ids) for each in examples}) > 2

    with torch.no_grad():
        together = model(**collate(examples)).loss
        each = torch.stack([model(**collate([example])).loss for example in examples])

    assert together.item() == pytest.approx(each.mean().item(), rel=1e-5)
    labels = collate(examples)["labels"]
    assert (labels != IGNORED).sum() == 2 * len(examples)  # the label and the end
