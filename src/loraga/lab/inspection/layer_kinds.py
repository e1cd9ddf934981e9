"""What a layer's name says: its kind (q_proj, down_proj, ...) and the number of the block that it is in.

model.layers.12.self_attn.q_proj                  -> block 12, kind q_proj
transformer.h.3.mlp.c_proj                        -> block 3, kind mlp.c_proj (attn.c_proj is another kind)
encoder.block.0.layer.0.SelfAttention.q           -> block 0, kind encoder SelfAttention.q

Names are read, not modules, so that what was measured can be sorted without a model.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Place:
    """Where a layer is in its model.

    Attributes:
        kind: what the layers that do the same in each block have in common.
        block: number of the block; None for a layer outside the blocks.
    """

    kind: str
    block: int | None


def places(names: Iterable[str]) -> dict[str, Place]:
    """Finds kind and block of each layer; kinds are as short as they can be and still differ.

    Args:
        names: of the layers, as in the model.

    Returns:
        {name: its place}, in the same order.
    """
    split = {name: _split(name) for name in names}
    stacks = defaultdict(set)
    for stack, _, within in split.values():
        stacks[within].add(stack)
    kinds = {within: _shortest(within, stacks) for within in stacks}
    return {
        name: Place(f"{stack.partition('.')[0]} {kinds[within]}" if len(stacks[within]) > 1 else kinds[within], block)
        for name, (stack, block, within) in split.items()
    }


def _split(name: str) -> tuple[str, int | None, str]:
    """The name before the block's number, that number, and the name after it without the numbers that follow."""
    parts = name.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return "", None, name
    within = ".".join(part for part in parts[at + 1 :] if not part.isdigit())
    return ".".join(parts[:at]), int(parts[at]), within or parts[at - 1]


def _shortest(within: str, among: Iterable[str]) -> str:
    """The fewest last parts of a name that no other of them ends with."""
    parts = within.split(".")
    others = [other.split(".") for other in among if other != within]
    return next(
        (
            ".".join(parts[-count:])
            for count in range(1, len(parts))
            if all(other[-count:] != parts[-count:] for other in others)
        ),
        within,
    )
