import pytest
import torch

from loraga.lab.encoding import IGNORED, batches, collate, encode, prompts_only
from loraga.lab.task import Item

ITEMS = [Item("1 + 1 =", "2"), Item("What is 12 + 345?", "357"), Item("2 * 2", "four")]


def test_prompt_is_the_chat_format_and_the_answer_ends_with_the_end_token(tokenizer):
    encoded = encode(tokenizer, ITEMS[0])

    assert tokenizer.decode(encoded.prompt) == "<|im_start|>user\n1 + 1 =<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoded.answer) == "2<|im_end|>"


def test_padding_and_cut_logits_leave_each_items_loss_as_it_is_alone(tokenizer, model):
    encoded = [encode(tokenizer, item) for item in ITEMS]
    losses, terms = [], []
    for item in encoded:
        ids = torch.tensor([item.prompt + item.answer])
        labels = torch.tensor([[IGNORED] * len(item.prompt) + list(item.answer)])
        losses.append(model(input_ids=ids, labels=labels).loss.item())
        terms.append(len(item.answer))
    alone = sum(loss * count for loss, count in zip(losses, terms, strict=True)) / sum(terms)

    together = model(**collate(encoded, tokenizer.pad_token_id)).loss.item()

    assert together == pytest.approx(alone, rel=1e-5)


def test_labels_name_the_answers_only(tokenizer):
    (batch,) = batches(tokenizer, ITEMS, size=3)

    shifted = batch["labels"][:, 1:]
    assert (batch["labels"][:, 0] == IGNORED).all()
    assert [tokenizer.decode(row[row != IGNORED]) for row in shifted] == [
        "2<|im_end|>",
        "357<|im_end|>",
        "four<|im_end|>",
    ]


def test_no_column_is_wasted_on_padding_and_no_logits_on_prompts(tokenizer):
    (batch,) = batches(tokenizer, ITEMS, size=3)

    assert batch["attention_mask"].any(dim=0).all()
    assert batch["logits_to_keep"] == batch["labels"].shape[1] == len("four") + 2


def test_prompts_for_generation_end_in_the_last_column(tokenizer):
    batch = prompts_only([encode(tokenizer, item) for item in ITEMS], tokenizer.pad_token_id)

    kept = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert [tuple(ids.tolist()) for ids in kept] == [encode(tokenizer, item).prompt for item in ITEMS]
    assert batch["attention_mask"][:, -1].all()


def test_batches_keep_the_items_order_and_the_rest_makes_a_smaller_one(tokenizer):
    made = batches(tokenizer, ITEMS, size=2)

    assert [len(batch["labels"]) for batch in made] == [2, 1]
    assert "2 * 2" in tokenizer.decode(made[1]["input_ids"][0])
