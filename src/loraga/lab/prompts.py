"""Rows as text: what a model is given, and what it is to answer.

    row --prompt, target--> two texts --as they are, or as a chat of two messages --> text | target
    row --chat--> [{role, content}, ...] --the model's template--> text | target | text | target ...

The loss falls on the targets only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import DataError, SettingsError
from .gym_task import GYM
from .metrics import METRICS
from .rows import require_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .recipe import Recipe

Message = dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """A part of a row's text.

    Attributes:
        text: the part; the text of a row is its parts one after another.
        is_target: whether the loss falls on it.
        answer: what a target says, without the marks that a template puts around it; without a template, None.
    """

    text: str
    is_target: bool
    answer: str | None = None


@dataclass(frozen=True)
class Prompted:
    """One row as text.

    Attributes:
        segments: the parts; the first is a prompt and the last a target.
        from_template: whether a chat template wrote them, which then holds every special token.
        row: the row's number in its data, from 1; 0 if it has none.
        columns: those of its columns that the metric reads.
    """

    segments: tuple[Segment, ...]
    from_template: bool
    row: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """All text before the last target."""
        return "".join(each.text for each in self.segments[:-1])

    @property
    def target(self) -> str:
        """What the last target says, without a template's marks and space around it: the answer to be judged by."""
        last = self.segments[-1]
        return (last.text if last.answer is None else last.answer).strip()


def make_prompted(
    rows: Sequence[Mapping[str, Any]], recipe: Recipe, tokenizer: Any, name: str, judged: bool = False
) -> list[Prompted]:
    """Writes rows as text.

    Args:
        rows: {column: value} each.
        recipe: says which columns are prompt, target or chat, whether the model's template is used, and the metric.
        tokenizer: the model's, for its template.
        name: the data that the rows come from, for messages.
        judged: whether answers to them are judged, so that they need the columns that the metric reads.

    Returns:
        One text a row, in order.

    Raises:
        DataError: if a row lacks a column or a target, is no chat, or the template does not take it; it names the row.
        SettingsError: if the recipe asks for a template that the tokenizer has not, or a text's braces are wrong.
    """
    metric = METRICS[recipe.metric if judged else "none"]
    write = _writer(recipe, tokenizer, metric.has_targets)
    kept = metric.columns
    made = []
    for position, row in enumerate(rows, start=1):
        number = getattr(row, "number", position)
        try:
            segments = write(row)
            columns = {column: _value(row, column) for column in kept}
        except DataError as cause:
            raise DataError(f"row {number} of {name} {cause}") from cause
        made.append(Prompted(segments, segments[-1].answer is not None, number, columns))
    return made


def _writer(recipe: Recipe, tokenizer: Any, has_targets: bool) -> Callable[[Mapping[str, Any]], tuple[Segment, ...]]:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if recipe.chat is not None:
        if not has_template:
            raise SettingsError("chat needs a tokenizer with a chat template, and this has none; write prompt, target")
        column = recipe.chat
        return lambda row: _of_chat(_messages(_value(row, column), column), tokenizer)
    if recipe.template == "chat" and not has_template:
        raise SettingsError("template: chat needs a tokenizer with a chat template, and this has none; write none")
    is_gym = recipe.data.startswith(GYM)
    prompt = _Pattern.read("prompt", recipe.prompt or ("question" if is_gym else None))
    target = _Pattern.read("target", recipe.target or ("answer" if is_gym else None))

    def write(row: Mapping[str, Any]) -> tuple[Segment, ...]:
        asked, answer = prompt.fill(row), target.fill(row)
        if has_targets and not answer.strip():
            raise DataError("has no target")
        if recipe.labels is not None:
            answer = _with_label(answer, recipe.labels)
        if recipe.template == "none" or not has_template:
            return Segment(asked, is_target=False), Segment(answer, is_target=True)
        return _of_chat([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], tokenizer)

    return write


_BRACES = re.compile(r"(?P<double>\{\{|\}\})|\{(?P<column>[^{}]+)\}|(?P<single>[{}])")


@dataclass(frozen=True)
class _Pattern:
    """A text with columns in it: (literal text, the column that follows it or None) pairs."""

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def read(cls, key: str, text: str | None) -> _Pattern:
        if text is None:
            raise SettingsError(f"{key} is missing; name the columns of prompt and target, or that of a chat")
        if "{" not in text and "}" not in text:
            return cls((("", text),))
        parts: list[tuple[str, str | None]] = []
        end = 0
        for found in _BRACES.finditer(text):
            if found["single"]:
                raise SettingsError(
                    f"{key}: {text!r} has a brace that encloses no column, at character {found.start() + 1}; "
                    "write {column}, or {{ and }} for braces themselves"
                )
            parts.append((text[end : found.start()] + (found["double"] or "")[:1], found["column"]))
            end = found.end()
        return cls((*parts, (text[end:], None)))

    def fill(self, row: Mapping[str, Any]) -> str:
        return "".join(text + ("" if column is None else _as_text(row, column)) for text, column in self.parts)


def _with_label(target: str, labels: Sequence[str]) -> str:
    """The target with its label word: it is one, or its place in the list."""
    said = target.strip()
    if said in labels:
        return target
    if not said.isdecimal() or int(said) >= len(labels):
        places = ", ".join(f"{place} {label}" for place, label in enumerate(labels))
        raise DataError(f"has the target {said!r}, which is none of labels ({places})")
    return target.replace(said, labels[int(said)])


def _as_text(row: Mapping[str, Any], column: str) -> str:
    value = _value(row, column)
    if isinstance(value, (list, dict)):
        raise DataError(f"has a {type(value).__name__} in column {column}, not a text; write it as a text")
    return "" if value is None else str(value)


def _value(row: Mapping[str, Any], column: str) -> Any:
    require_column(row, column)
    return row[column]


def _messages(value: Any, column: str) -> list[Message]:
    shape = f"in column {column} no list of {{role, content}}"
    if not isinstance(value, list) or not value or not all(isinstance(each, Mapping) for each in value):
        raise DataError(f"has {shape}")
    # a table fills keys that only other messages have with null
    messages = [{key: each[key] for key in each if each[key] is not None} for each in value]
    for number, each in enumerate(messages, start=1):
        if "role" not in each and {"from", "value"} <= set(each):
            raise DataError(f"has {shape}, but {{from, value}}; convert it: from is role (human: user, gpt: assistant)")
        if each.get("role") == "assistant" and not str(each.get("content", "")).strip():
            raise DataError(f"has no target: message {number} is an assistant's turn without content")
        if not isinstance(each.get("role"), str) or not isinstance(each.get("content"), str):
            raise DataError(f"has {shape}: message {number} needs both, as texts")
    roles = [each["role"] for each in messages]
    if "assistant" not in roles:
        raise DataError(f"has no target: no turn in column {column} is the assistant's (roles: {', '.join(roles)})")
    if roles[0] == "assistant":
        raise DataError("begins with the assistant's turn, which nothing prompts; put a user's turn before it")
    return messages


def _of_chat(messages: list[Message], tokenizer: Any) -> tuple[Segment, ...]:
    """Renders each assistant's turn as a target: its text, and the mark of the turn's end.

    Space after that mark belongs to the template's next turn: no model has to generate it.
    """
    segments: list[Segment] = []
    former = written = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(messages[:index], tokenizer, add_generation_prompt=True)
        after = _render(messages[: index + 1], tokenizer, add_generation_prompt=False)
        if not before.startswith(former):
            raise DataError(
                f"does not fit the template, which rewrites earlier turns when message {index} follows; "
                "make each answer a row of its own"
            )
        if not after.startswith(before):
            raise DataError(
                f"does not fit the template, which begins the assistant's turn (message {index + 1}) in another way "
                "than it prompts for one; write prompt and target, with template: none"
            )
        target = after[len(before) :].rstrip()
        segments += [
            Segment(before[len(written) :], is_target=False),
            Segment(target, is_target=True, answer=message["content"]),
        ]
        former, written = after, before + target
    return tuple(segments)


def _render(messages: list[Message], tokenizer: Any, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError  # transformers needs it for templates only

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError, ValueError) as cause:
        raise DataError(f"is refused by the chat template: {' '.join(str(cause).split())}") from cause
