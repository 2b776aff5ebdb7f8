"""Whole numbers as people write them: 100000, 100_000, 1e5."""

from __future__ import annotations

import re
from decimal import Decimal

_DIGITS = re.compile(r"[-+]?\d+(_\d+)*")
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE]\+?\d{1,2}")


def whole_number(text: str) -> int | None:
    """The integer that a text such as 100000, 100_000, 1e5 or 1.5e6 stands for; None for any other text."""
    if _DIGITS.fullmatch(text):
        return int(text)
    if not _EXPONENT.fullmatch(text):
        return None
    value = Decimal(text)
    return int(value) if value == value.to_integral_value() else None
