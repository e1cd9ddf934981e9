import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraga.lab.errors import DataError, SettingsError
from loraga.lab.prompts import Prompted, Segment, make_prompted
from loraga.lab.recipe import Recipe
from loraga.lab.rows import Row

from .conftest import byte_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as models that think do it: of all answers but the last, only what follows the thought is kept
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INCONSISTENT = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant: ")
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system\nturn') }}{% endif %}" + CHATML

ROW = {"question": "1 + 1 =", "answer": "2", "number": 3, "nothing": None, "list": ["a"]}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1 ="},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "and 1?"},
    {"role": "assistant", "content": "<think>2 + 1</think>3"},
    {"role": "user", "content": "Thanks."},
]


def tokenizer_with(template=None):
    made = byte_tokenizer()
    made.chat_template = template
    return made


def recipe(**settings):
    return Recipe(model="any", **{"data": "rows.jsonl", **settings})


def prompted(row, chat_template=None, **settings):
    if "chat" not in settings:
        settings = {"prompt": "question", "target": "answer"} | settings
    (made,) = make_prompted([row], recipe(**settings), tokenizer_with(chat_template), "rows.jsonl")
    return made


def texts(made):
    return [(each.text, each.is_target) for each in made.segments]


# --- prompt and target


def test_columns_as_they_are_make_prompt_and_target():
    made = prompted(ROW)

    assert made == Prompted((Segment("1 + 1 =", False), Segment("2", True)), from_template=False, row=1)
    assert (made.prompt, made.target) == ("1 + 1 =", "2")


def test_columns_stand_in_a_text_where_it_has_braces():
    made = prompted(ROW, prompt="{{{number}}} {question}{nothing} }}{{", target=" {answer}.\n")

    assert made.prompt == "{3} 1 + 1 = }{"
    assert (made.segments[1].text, made.target) == (" 2.\n", "2.")


@given(st.lists(st.one_of(st.text("ab {}\n"), st.just(None))))
def test_a_text_with_columns_is_filled_as_pythons_format_does(parts):
    pattern = "{number}".join("" if part is None else part.replace("{", "{{").replace("}", "}}") for part in parts)

    assert prompted(ROW, prompt=pattern + "{number}").prompt == (pattern + "{number}").format(number=3)


def test_a_columns_name_is_never_python():
    with pytest.raises(DataError, match=r"has no column question.__class__ "):
        prompted(ROW, prompt="{question.__class__}")
    assert prompted({"a.b": "x", "c d": "y", "answer": "z"}, prompt="{a.b}{c d}").prompt == "xy"


@pytest.mark.parametrize("text", ["a {question", "question} b", "{} c", "{a{question}}"])
def test_a_brace_without_a_column_is_refused(text):
    with pytest.raises(SettingsError, match=f"^target: {re.escape(repr(text))} has a brace that encloses no column"):
        prompted(ROW, target=text)


def test_a_reasoning_gym_task_has_question_and_answer():
    made = make_prompted([ROW], recipe(data="reasoning_gym:arithmetic.gcd", rows=1), tokenizer_with(), "gcd")

    assert (made[0].prompt, made[0].target) == ("1 + 1 =", "2")


def test_a_recipe_without_columns_is_refused():
    with pytest.raises(SettingsError, match="prompt is missing; name the columns"):
        make_prompted([ROW], recipe(), tokenizer_with(), "rows.jsonl")


@pytest.mark.parametrize("template", ["auto", "chat"])
def test_prompt_and_target_become_a_chat_where_the_tokenizer_has_a_template(template):
    made = prompted(ROW, CHATML, template=template, target="{answer} ")

    prompt = "<|im_start|>user\n1 + 1 =<|im_end|>\n<|im_start|>assistant\n"
    assert texts(made) == [(prompt, False), ("2 <|im_end|>", True)]
    assert made.from_template
    assert (made.prompt, made.target) == (prompt, "2")


def test_no_template_is_used_where_none_is_wanted():
    assert texts(prompted(ROW, CHATML, template="none")) == [("1 + 1 =", False), ("2", True)]


def test_a_chat_without_a_template_is_refused():
    with pytest.raises(SettingsError, match=r"template: chat needs a tokenizer with a chat template.*write none"):
        prompted(ROW, template="chat")
    with pytest.raises(SettingsError, match=r"chat needs a tokenizer with a chat template.*write prompt, target"):
        prompted({"chat": CHAT}, chat="chat")


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("answer", ["", " \n", None])
def test_a_row_without_a_target_is_named(answer, template):
    rows = [ROW, Row({**ROW, "answer": answer}, number=7)]

    with pytest.raises(DataError, match=r"^row 7 of rows.jsonl has no target$"):
        make_prompted(rows, recipe(prompt="question", target="answer"), tokenizer_with(template), "rows.jsonl")


def test_a_row_without_a_number_is_named_by_its_position():
    rows = [ROW, {**ROW, "answer": ""}]

    with pytest.raises(DataError, match=r"^row 2 of rows.jsonl has no target$"):
        make_prompted(rows, recipe(prompt="question", target="answer"), tokenizer_with(), "rows.jsonl")


def test_a_missing_column_is_answered_with_those_there_are_and_the_nearest():
    there = re.escape("(its columns: question, answer, number, nothing, list); did you mean question?")

    with pytest.raises(DataError, match=f"^row 1 of rows.jsonl has no column questoin {there}$"):
        prompted(ROW, prompt="Q: {questoin}")


def test_a_list_is_not_written_as_python_writes_it():
    with pytest.raises(DataError, match=r"row 1 of rows.jsonl has a list in column list, not a text"):
        prompted(ROW, target="list")


# --- chats


def test_every_turn_of_the_assistant_is_a_target_with_its_end():
    made = prompted({"chat": CHAT}, CHATML, chat="chat")

    assert texts(made) == [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1 =<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("2<|im_end|>", True),
        ("\n<|im_start|>user\nand 1?<|im_end|>\n<|im_start|>assistant\n", False),
        ("<think>2 + 1</think>3<|im_end|>", True),
    ]
    assert made.target == "<think>2 + 1</think>3"


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(min_size=1)), max_size=6))
def test_segments_are_the_rendered_chat_up_to_the_last_answer(turns):
    turns = [("user", "hi"), *[(role, text) for role, text in turns if text.strip()], ("assistant", "yes")]
    chat = [{"role": role, "content": text} for role, text in turns]
    whole = tokenizer_with(CHATML).apply_chat_template(chat, tokenize=False)

    made = prompted({"chat": chat}, CHATML, chat="chat")

    answers = [text for role, text in turns if role == "assistant"]
    assert "".join(text for text, _ in texts(made)) == whole.rstrip()
    assert [text for text, is_target in texts(made) if is_target] == [f"{text}<|im_end|>" for text in answers]
    assert [is_target for _, is_target in texts(made)] == [False, True] * len(answers)


def test_a_templates_further_columns_are_kept_and_those_of_other_messages_left_out():
    template = CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'] }}{% if 'name' in m %}({{ m['name'] }}){% endif %}"
    )
    chat = [
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": "yes", "name": None},
    ]

    assert [text for text, _ in texts(prompted({"chat": chat}, template, chat="chat"))] == [
        "<|im_start|>user\nhi(Ann)<|im_end|>\n<|im_start|>assistant\n",
        "yes<|im_end|>",
    ]


def test_a_template_that_rewrites_earlier_turns_is_refused():
    chat = [*CHAT[1:2], CHAT[4], *CHAT[3:5]]

    with pytest.raises(
        DataError, match=r"^row 1 of .* rewrites earlier turns when message 3 follows; make each answer"
    ):
        prompted({"chat": chat}, FORGETFUL, chat="chat")
    assert len(prompted({"chat": chat[:2]}, FORGETFUL, chat="chat").segments) == 2


def test_a_template_that_prompts_for_another_beginning_is_refused():
    with pytest.raises(DataError, match=r"^row 1 of .* \(message 2\) in another way than it prompts for one; .*: none"):
        prompted(ROW, INCONSISTENT)


def test_what_a_template_refuses_is_said_in_one_line():
    with pytest.raises(DataError, match=r"^row 1 of rows.jsonl is refused by the chat template: no system turn$"):
        prompted({"chat": CHAT}, STRICT, chat="chat")


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ("user: hi", "in column chat no list of {role, content}"),
        ([], "in column chat no list of {role, content}"),
        (["hi"], "in column chat no list of {role, content}"),
        (None, "in column chat no list of {role, content}"),
        ([{"from": "human", "value": "hi"}], "but {from, value}; convert it"),
        ([{"role": "user"}], "message 1 needs both"),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "message 1 needs both"),
        ([{"content": "hi"}], "message 1 needs both"),
        (CHAT[:2], "has no target: no turn in column chat is the assistant's (roles: system, user)"),
        ([CHAT[1], {"role": "assistant", "content": " "}], "has no target: message 2 is"),
        ([CHAT[1], {"role": "assistant", "content": None}], "has no target: message 2 is"),
        (CHAT[2:], "begins with the assistant's turn"),
    ],
)
def test_messages_of_another_shape_are_refused(chat, words):
    with pytest.raises(DataError, match=f"^row 1 of rows.jsonl .*{re.escape(words)}"):
        prompted({"chat": chat}, CHATML, chat="chat")


# --- labels


@pytest.mark.parametrize(
    ("target", "said"),
    [("1", "positive"), (0, "negative"), ("positive", "positive"), (" 1", " positive"), (" negative ", " negative ")],
)
def test_a_target_with_labels_is_a_label_or_its_place(target, said):
    made = prompted({"q": "good", "a": target}, prompt="q", target="a", labels=["negative", "positive"])

    assert made.segments[-1].text == said
    assert made.target == said.strip()


@pytest.mark.parametrize("target", ["2", "-1", "neutral", "Positive", "1.0", "\u00b2", True])
def test_a_target_that_is_none_of_the_labels_is_refused_with_all_of_them(target):
    with pytest.raises(
        DataError, match=r"row 1 of rows.jsonl has the target .*none of labels \(0 negative, 1 positive"
    ):
        prompted({"q": "good", "a": target}, prompt="q", target="a", labels=["negative", "positive"])
