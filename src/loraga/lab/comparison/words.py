"""Numbers as tables and pictures write them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .table import Cell

if TYPE_CHECKING:
    from .statistics import Difference, Spread

NOTHING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
EDGE = "†"
CLEAR = "*"
GIB = 2**30
SIZES = {1e9: "B", 1e6: "M", 1e3: "k"}


def rate_text(rate: float | None) -> str:
    """A learning rate with up to three digits: "4e-3", "1.25e-5"."""
    if rate is None:
        return NOTHING
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def factor_text(factor: float | None) -> str:
    """A factor: "4x", "0.33x"."""
    return NOTHING if factor is None else f"{factor:.2g}x"


def count_text(count: float | None) -> str:
    """A count with three digits: "1.2M"."""
    if count is None:
        return NOTHING
    for size, letter in SIZES.items():
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def seeds_text(count: int) -> str:
    """How many seeds, in words."""
    return "1 seed" if count == 1 else f"{count} seeds"


class Scale:
    """How values of one quantity are written: a share in percent, a loss with four decimals.

    Args:
        is_share: whether the values lie between 0 and 1 and are shown as percentages.
        digits: after the point.
    """

    def __init__(self, is_share: bool, digits: int) -> None:
        self.factor, self.digits = (100.0 if is_share else 1.0), digits

    def text(self, value: float | None, sign: bool = False) -> str:
        """One value."""
        if value is None:
            return NOTHING
        scaled = value * self.factor
        if not math.isfinite(scaled):
            return f"{scaled}"
        written = f"{scaled:{'+' if sign else ''}.{self.digits}f}"
        return written.replace("-", MINUS)

    def spread(self, found: Spread | None) -> Cell:
        """Mean and standard deviation over seeds, with the values (mean, std, seeds)."""
        if found is None:
            return Cell(NOTHING, (None, None, 0))
        spread = "(1 seed)" if found.std is None else f"± {self.text(found.std)}"
        return Cell(f"{self.text(found.mean)} {spread}", (found.mean, found.std, found.count))

    def difference(self, found: Difference | None) -> Cell:
        """A difference with its interval, marked where it is clear, with the values (value, low, high, seeds)."""
        if found is None:
            return Cell(NOTHING, (None, None, None, None))
        mark = CLEAR if found.is_clear else ""
        ends = f"[{self.text(found.low, sign=True)}, {self.text(found.high, sign=True)}]"
        text = f"{self.text(found.value, sign=True)}{mark} {ends}"
        return Cell(text, (found.value, found.low, found.high, found.seeds))
