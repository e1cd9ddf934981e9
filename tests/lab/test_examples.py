import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import T5Config, T5ForConditionalGeneration

from loraga.lab.errors import DataError
from loraga.lab.examples import (
    IGNORED,
    Collator,
    Example,
    encode_all,
    leading_special_tokens,
    padding,
    prompt_batch,
    takes_logits_to_keep,
)
from loraga.lab.prompts import Prompted, Segment, make_prompted
from loraga.lab.recipe import Recipe
from tests.models import build, with_lora

from .conftest import END, byte_tokenizer, tiny_model

START = "<|im_start|>"
START_ID, END_ID = 256, 257
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAIRS = [("1 + 1 =", "2"), ("What is 12 + 345?", " 357"), ("2 * 2", "four")]
# 14, 3, 14 and 2 tokens: the tokenizer has one for each byte
TURNS = [("first question", False), ("one", True), ("and the second", False), ("2?", True)]


def enclosing_tokenizer():
    """A tokenizer that puts its start before a text and its end after it, as BERT's and some of Llama's kind do."""
    made = byte_tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, START_ID), (END, END_ID)]
    )
    return made


def recipe(**settings):
    return Recipe(model="any", data="rows.jsonl", prompt="q", target="a", **settings)


def pair(prompt, target):
    return Prompted((Segment(prompt, False), Segment(target, True)), from_template=False)


def rows(pairs=PAIRS):
    return [pair(*each) for each in pairs]


def encoded(tokenizer, prompted, is_encoder_decoder=False, **settings):
    return encode_all(tokenizer, prompted, recipe(**settings), "rows.jsonl", is_encoder_decoder)


def spoken(tokenizer, example):
    """What the loss falls on, as text."""
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


def made_example(lengths, seed):
    """Random ids: unlabelled, labelled, unlabelled, ... of these lengths."""
    ids = torch.randint(0, 256, (sum(lengths),), generator=torch.Generator().manual_seed(seed)).tolist()
    flags = [index % 2 == 1 for index, length in enumerate(lengths) for _ in range(length)]
    labels = [token if flag else IGNORED for token, flag in zip(ids, flags, strict=True)]
    return Example(tuple(ids), tuple(labels), tuple(ids[: lengths[0]]), pair("", ""))


# --- token ids


def test_a_target_without_a_template_ends_with_the_end_token(tokenizer):
    example = encoded(tokenizer, rows()).examples[0]

    assert tokenizer.decode(example.input_ids) == f"1 + 1 =2{END}"
    assert tokenizer.decode(example.prompt_ids) == "1 + 1 ="
    assert spoken(tokenizer, example) == f"2{END}"


def test_the_end_token_is_not_written_twice(tokenizer):
    assert encoded(tokenizer, rows([("q", f"a{END}")])).examples[0].labels[-2:] == (ord("a") - 33, END_ID)


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4), st.booleans())
def test_labels_cover_the_targets_exactly(pairs, from_template):
    tokenizer = byte_tokenizer()
    segments = [Segment(text, is_target) for both in pairs for text, is_target in zip(both, (False, True), strict=True)]
    end = "" if from_template else END

    example = encoded(tokenizer, [Prompted(tuple(segments), from_template)]).examples[0]

    assert tokenizer.decode(example.input_ids) == "".join(q + a + end for q, a in pairs)
    assert spoken(tokenizer, example) == "".join(a + end for _, a in pairs)
    assert all(label in (IGNORED, token) for token, label in zip(example.input_ids, example.labels, strict=True))
    assert tokenizer.decode(example.prompt_ids) == "".join(q + a + end for q, a in pairs)[: -len(pairs[-1][1] + end)]


def test_the_tokenizers_start_is_kept_and_its_end_left_out():
    tokenizer = enclosing_tokenizer()

    example = encoded(tokenizer, rows()).examples[0]

    assert tokenizer.decode(example.input_ids) == f"{START}1 + 1 =2{END}"
    assert tokenizer.decode(example.prompt_ids) == f"{START}1 + 1 ="
    assert leading_special_tokens(tokenizer) == (START_ID,)
    assert leading_special_tokens(byte_tokenizer()) == ()


def test_a_start_that_the_prompt_has_is_not_written_twice():
    example = encoded(enclosing_tokenizer(), rows([(f"{START}q", "a")])).examples[0]

    assert example.input_ids.count(START_ID) == 1


def test_a_template_writes_all_special_tokens_itself():
    tokenizer = enclosing_tokenizer()
    tokenizer.chat_template = CHATML
    prompted = make_prompted([{"q": "1 + 1 =", "a": "2"}], recipe(), tokenizer, "rows.jsonl")

    example = encoded(tokenizer, prompted).examples[0]

    assert tokenizer.decode(example.input_ids) == f"{START}user\n1 + 1 ={END}\n{START}assistant\n2{END}"
    assert example.input_ids.count(START_ID) == example.input_ids.count(END_ID) == 2
    assert spoken(tokenizer, example) == f"2{END}"


def test_many_rows_keep_their_order(tokenizer):
    pairs = [(f"q{number}", f"a{number}") for number in range(1203)]

    examples = encoded(tokenizer, rows(pairs)).examples

    assert [tokenizer.decode(each.input_ids) for each in examples] == [f"{q}{a}{END}" for q, a in pairs]


def test_an_encoder_reads_the_prompt_and_a_decoder_writes_the_target():
    tokenizer = enclosing_tokenizer()

    example = encoded(tokenizer, rows(), is_encoder_decoder=True).examples[0]

    assert tokenizer.decode(example.input_ids) == f"{START}1 + 1 ={END}"
    assert tokenizer.decode(example.labels) == f"2{END}"
    assert example.prompt_ids == example.input_ids


def test_a_prompt_of_nothing_is_refused_unless_the_tokenizer_starts_it(tokenizer):
    assert encoded(enclosing_tokenizer(), rows([("", "a")])).examples[0].prompt_ids == (START_ID,)
    with pytest.raises(DataError, match=r"row 2 of rows.jsonl has no prompt"):
        encoded(tokenizer, rows([("q", "a"), ("", "a")]))


def test_a_tokenizer_without_an_end_is_refused_where_a_target_needs_one():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None

    with pytest.raises(DataError, match="the tokenizer has no end token"):
        encoded(tokenizer, rows())
    from_template = Prompted((Segment("q", False), Segment("a", True)), from_template=True)
    assert len(encoded(tokenizer, [from_template]).examples) == 1


# --- rows that are too long


def test_a_long_row_is_cut_at_the_right_and_counted(tokenizer):
    made = encoded(tokenizer, rows([("12345", "abcdef"), ("1", "a"), ("12345", "abc")]), sequence_length=9)

    assert [tokenizer.decode(each.input_ids) for each in made.examples] == ["12345abcd", f"1a{END}", f"12345abc{END}"]
    assert [spoken(tokenizer, each) for each in made.examples] == ["abcd", f"a{END}", f"abc{END}"]
    assert (made.cut, made.dropped) == (1, 0)
    assert made.examples[0].prompted.target == "abcdef"


@pytest.mark.parametrize(
    ("length", "text", "targets", "prompt"),
    [
        (33, "first questiononeand the second2?", "one2?", "first questiononeand the second"),
        (32, "first questiononeand the second2", "one2", "first questiononeand the second"),
        (31, "first questionone", "one", "first question"),
        (17, "first questionone", "one", "first question"),
        (15, "first questiono", "o", "first question"),
    ],
)
def test_a_long_chat_ends_with_the_last_target_that_begins_in_time(tokenizer, length, text, targets, prompt):
    chat = Prompted(tuple(Segment(*each) for each in TURNS), from_template=True)

    (example,) = encoded(tokenizer, [chat], sequence_length=length).examples

    assert tokenizer.decode(example.input_ids) == text
    assert spoken(tokenizer, example) == targets
    assert tokenizer.decode(example.prompt_ids) == example.prompted.prompt == prompt


def test_a_prompt_that_leaves_its_target_no_room_is_refused(tokenizer):
    prompted = [pair("1", "a"), Prompted((Segment("12345", False), Segment("abc", True)), False, row=70)]

    with pytest.raises(DataError, match=r"^row 70 of rows.jsonl has a prompt of 5 tokens, .*sequence_length: 5; raise"):
        encoded(tokenizer, prompted, sequence_length=5)
    assert spoken(tokenizer, encoded(tokenizer, prompted, sequence_length=6).examples[1]) == "a"


def test_long_rows_are_dropped_and_counted(tokenizer):
    made = encoded(tokenizer, rows([("12345", "abc"), ("1", "a")]), sequence_length=8, too_long="drop")

    assert [tokenizer.decode(each.input_ids) for each in made.examples] == [f"1a{END}"]
    assert (made.cut, made.dropped) == (0, 1)


def test_dropping_every_row_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"every row of rows.jsonl has more tokens than sequence_length: 4; raise it"):
        encoded(tokenizer, rows(), sequence_length=4, too_long="drop")


def test_a_long_row_is_an_error_where_that_is_asked_for(tokenizer):
    with pytest.raises(DataError, match=r"row 2 of rows.jsonl has 22 tokens, more than sequence_length: 21"):
        encoded(tokenizer, rows(), sequence_length=21, too_long="error")
    assert encoded(tokenizer, rows(), sequence_length=22, too_long="error").cut == 0


def test_each_side_of_an_encoder_decoder_has_the_length_for_itself(tokenizer):
    made = encoded(
        tokenizer, rows([("12345", "abcdef"), ("12345", "abcd")]), is_encoder_decoder=True, sequence_length=5
    )

    assert [tokenizer.decode(each.labels) for each in made.examples] == ["abcde", f"abcd{END}"]
    assert made.cut == 1
    with pytest.raises(DataError, match=r"row 1 of rows.jsonl has a prompt of 5 tokens"):
        encoded(tokenizer, rows([("12345", "a")]), is_encoder_decoder=True, sequence_length=4)


# --- batches


@given(
    st.lists(st.lists(st.integers(1, 7), min_size=2, max_size=5), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_cut_logits_change_neither_loss_nor_gradient(lengths, seed):
    examples = [made_example(each, seed + index) for index, each in enumerate(lengths)]
    model = tiny_model()
    losses, gradients = [], []
    for keeps_logits in (True, False):
        loss = model(**Collator(END_ID, False, keeps_logits)(examples)).loss
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        losses.append(loss.item())

    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for cut, full in zip(*gradients, strict=True):
        torch.testing.assert_close(cut, full, rtol=1e-4, atol=1e-6)


@given(st.lists(st.lists(st.integers(1, 7), min_size=2, max_size=5), min_size=1, max_size=4))
def test_kept_labels_are_the_end_of_the_full_ones_and_lose_none(lengths):
    examples = [made_example(each, index) for index, each in enumerate(lengths)]
    full, kept = (Collator(END_ID, False, keeps_logits)(examples) for keeps_logits in (False, True))

    assert kept["labels"].shape[1] == kept["logits_to_keep"]
    assert torch.equal(kept["labels"], full["labels"][:, -kept["logits_to_keep"] :])
    assert (kept["labels"][:, 0] == IGNORED).all()
    assert (kept["labels"][:, 1] != IGNORED).any()
    assert (kept["labels"] != IGNORED).sum() == (full["labels"] != IGNORED).sum()


def test_padding_leaves_each_rows_loss_as_it_is_alone(tokenizer, model):
    examples = encoded(tokenizer, rows()).examples
    terms = [sum(label != IGNORED for label in each.labels) for each in examples]
    alone = [
        model(input_ids=torch.tensor([each.input_ids]), labels=torch.tensor([each.labels])).loss.item()
        for each in examples
    ]

    together = model(**Collator(padding(tokenizer), False, True)(examples)).loss.item()

    mean = sum(loss * count for loss, count in zip(alone, terms, strict=True)) / sum(terms)
    assert together == pytest.approx(mean, rel=1e-5)


def test_rows_are_padded_on_the_right_and_no_column_is_wasted(tokenizer):
    examples = encoded(tokenizer, rows()).examples

    batch = Collator(3, False, False)(examples)

    for example, ids, mask, labels in zip(
        examples, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        length = len(example.input_ids)
        assert ids.tolist() == [*example.input_ids, *[3] * (ids.numel() - length)]
        assert mask.tolist() == [1] * length + [0] * (ids.numel() - length)
        assert labels.tolist() == [*example.labels, *[IGNORED] * (ids.numel() - length)]
    assert batch["attention_mask"].any(dim=0).all()


def tiny_t5():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=258,
            d_model=32,
            d_kv=8,
            d_ff=40,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=END_ID,
            pad_token_id=END_ID,
            eos_token_id=END_ID,
        )
    ).eval()


def test_an_encoder_decoders_loss_is_that_of_each_row_alone(tokenizer):
    model = tiny_t5()
    examples = encoded(tokenizer, rows(), is_encoder_decoder=True).examples
    alone = [
        model(input_ids=torch.tensor([each.input_ids]), labels=torch.tensor([each.labels])).loss.item()
        for each in examples
    ]
    terms = [len(each.labels) for each in examples]

    batch = Collator(padding(tokenizer), True, False)(examples)

    mean = sum(loss * count for loss, count in zip(alone, terms, strict=True)) / sum(terms)
    assert model(**batch).loss.item() == pytest.approx(mean, rel=1e-5)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_prompts_in_a_batch_generate_what_they_do_alone(tokenizer, is_encoder_decoder):
    model = tiny_t5() if is_encoder_decoder else tiny_model()
    examples = encoded(tokenizer, rows(), is_encoder_decoder).examples

    def generated(some):
        batch = prompt_batch(some, padding(tokenizer), is_encoder_decoder)
        made = model.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        return made[:, -6:]

    assert torch.equal(generated(examples), torch.cat([generated([each]) for each in examples]))


def test_prompts_of_a_causal_model_end_in_the_last_column(tokenizer):
    examples = encoded(tokenizer, rows()).examples

    batch = prompt_batch(examples, END_ID)

    kept = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert kept == [list(each.prompt_ids) for each in examples]
    assert batch["attention_mask"][:, -1].all()


# --- tokenizer and model


def test_padding_is_the_tokenizers_own_or_its_end_or_refused():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = START
    assert padding(tokenizer) == START_ID
    tokenizer.pad_token = None
    assert padding(tokenizer) == END_ID
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no padding token and no end token"):
        padding(tokenizer)


@pytest.mark.parametrize(("name", "takes"), [("Llama", True), ("T5", False)])
def test_an_adapter_does_not_hide_whether_logits_can_be_left_out(name, takes):
    assert takes_logits_to_keep(build(name)) is takes
    assert takes_logits_to_keep(with_lora(build(name), name)) is takes
