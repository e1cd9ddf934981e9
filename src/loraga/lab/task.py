"""Tasks with a verifiable answer, from reasoning-gym: questions without end, each with its one right answer.

Task --seed--> items, all different.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .reasoning_gym import single_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BLOCK = 1024  # items made at a time


@dataclass(frozen=True)
class Item:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A task of reasoning-gym.

    Attributes:
        name: how it is called here.
        module: the module that defines it, such as "arithmetic.chain_sum".
        dataset: the dataset's class in that module.
        settings_class: the class of its settings there.
        settings: what differs from the dataset's defaults.
    """

    name: str
    module: str
    dataset: str
    settings_class: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def items(self, seed: int) -> Iterator[Item]:
        """Yields items with questions that all differ; the same items for the same seed.

        Args:
            seed: not negative; items of two seeds are drawn independently.

        Yields:
            Items, until a block of them brings no new question.
        """
        seen: set[str] = set()
        first = seed << 32  # the gym draws item i from seed + i, so the blocks of a seed, and the seeds, keep apart
        while True:
            known = len(seen)
            with single_module(self.module) as module:
                settings = getattr(module, self.settings_class)(seed=first, size=BLOCK, **self.settings)
                dataset = getattr(module, self.dataset)(settings)
            for made in (dataset[index] for index in range(BLOCK)):
                item = Item(made["question"].strip(), str(made["answer"]).strip())
                if item.question not in seen:
                    seen.add(item.question)
                    yield item
            if len(seen) == known:
                return
            first += BLOCK
