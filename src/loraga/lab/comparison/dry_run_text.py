"""What a comparison takes, in words and as a table on a console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .speed import TRAINING_SHARE

if TYPE_CHECKING:
    from rich.console import Console

    from .dry_run import DryRun, Group

UNKNOWN = "?"
UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def show_dry_run(found: DryRun, console: Console) -> None:
    """Shows cells, time and memory, and on what they rest.

    Args:
        found: by `dry_run`.
        console: where.
    """
    table = Table()
    for heading in ("method", "cells", "steps", "tokens", "operations", "trained", "a cell", "memory", "disk"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for group in found.groups:
        table.add_row(*map(escape, _row(group)))
    console.print(table)
    for line in lines_of(found):
        console.print(line, highlight=False, markup=False)


def lines_of(found: DryRun) -> list[str]:
    """What the table does not say: all cells together, and the assumptions.

    Args:
        found: by `dry_run`.

    Returns:
        Lines.
    """
    done = f" ({found.done} are done)" if found.done else ""
    lines = [f"{found.cells} cells to run{done}, one after another about {duration(found.seconds)}"]
    if found.searched:
        added = duration(found.searched_seconds)
        lines.append(
            f"a search adds rates while a best one lies at the edge: {found.searched} cells and {added} more at most"
        )
    lines.append(f"memory of a cell: about {size(found.memory)}; disk: about {size(found.disk)} of {size(found.free)}")
    if found.disk is not None and found.disk > found.free:
        lines.append("that is more than is free; name another output_dir, or lower save_total_limit")
    basis = (
        f"a rough estimate: {found.speed.device} multiplies {found.speed.dtype} matrices at "
        f"{quantity(found.speed.rate)}FLOP/s now, of which training is taken to reach {TRAINING_SHARE:.0%} (measured "
        "once, on SmolLM2-135M on a CPU); DoRA and AdaLoRA take longer than their operations say"
    )
    return [*lines, basis, *found.notes]


def duration(seconds: float | None) -> str:
    """A time in words, with two figures at most."""
    if seconds is None:
        return UNKNOWN
    for limit, unit, name in ((120, 1, "s"), (120 * 60, 60, "min"), (72 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{float(f'{seconds / unit:.2g}'):g} {name}"
    return f"{float(f'{seconds / 86400:.2g}'):g} days"


def quantity(number: float | None) -> str:
    """A number with two or three figures and the letter of its power of a thousand: "1.3 T"."""
    if number is None:
        return UNKNOWN
    for power, letter in UNITS:
        if number >= power:
            return f"{float(f'{number / power:.3g}'):g} {letter}"
    return f"{number:g} "


def size(number: float | None) -> str:
    """Bytes in words: "1.3 GB"."""
    return UNKNOWN if number is None else f"{quantity(float(f'{number:.2g}'))}B"


def _row(group: Group) -> tuple[str, ...]:
    cells = f"{group.cells}" + (f" + up to {group.searched}" if group.searched else "")
    cost = group.cost
    if cost is None:
        return (group.name, cells, *(UNKNOWN for _ in range(7)))
    return (
        group.name,
        cells,
        f"{cost.steps:,}",
        f"{'' if cost.is_counted else 'at most '}{quantity(cost.tokens).strip()}",
        f"{quantity(cost.operations)}FLOP",
        quantity(cost.trained).strip(),
        duration(group.seconds),
        size(group.memory),
        size(cost.disk),
    )
