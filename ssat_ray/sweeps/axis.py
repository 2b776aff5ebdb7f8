"""One key of a sweep's space: some values, or a range. No Ray, no torch."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from ssat_ray.config import Section
from ssat_ray.mistakes import nearest
from ssat_ray.store import canonical_json

RANGES = ("uniform", "log_uniform", "integer", "log_integer")


class Axis(Section):
    """The values of one key: some, or a range.

    Args:
        kind: `choice`, or one of `RANGES`.
        values: what is chosen from, or the two ends of the range, both of them in it.
    """

    kind: Literal["choice", "uniform", "log_uniform", "integer", "log_integer"]
    values: tuple[Any, ...] = Field(strict=False)

    @property
    def written(self) -> Any:
        """As a sweep file has it."""
        values = list(self.values)
        return values if self.kind == "choice" else {self.kind: values}

    @property
    def size(self) -> float:
        """How many values it has."""
        if self.kind == "choice":
            return len(self.values)
        low, high = self.values
        return high - low + 1 if self.kind.endswith("integer") else math.inf

    def holds(self, value: Any) -> bool:
        if self.kind == "choice":
            return value in self.values
        low, high = self.values
        return bool(low <= value <= high)

    def draw(self, u: float) -> Any:
        """The value at `u`, uniform in [0, 1): floats with four digits, integers as many times each."""
        if self.kind == "choice":
            return self.values[int(u * len(self.values))]
        low, high = self.values
        if self.kind == "integer":
            return low + int(u * (high - low + 1))
        if self.kind == "log_integer":
            return min(high, int(low * ((high + 1) / low) ** u))
        value = low + u * (high - low) if self.kind == "uniform" else low * (high / low) ** u
        return min(max(float(f"{value:.4g}"), low), high)


def axis_of(key: str, found: Any) -> Axis | dict[str, Any]:
    """What the file has for a key, as an axis; ValueError says what is wrong with it."""
    if isinstance(found, Axis):
        return found
    if isinstance(found, dict) and len(found) == 1:
        ((kind, values),) = found.items()
    else:
        kind, values = "choice", found
    allowed = ("choice", *RANGES)
    if kind not in allowed:
        raise ValueError(
            f"space.{key}: unknown kind {kind!r}{nearest(str(kind), list(allowed))}; it is a list of values, "
            f"or {{KIND: [...]}} with one of {', '.join(allowed)}"
        )
    if not isinstance(values, list):
        raise ValueError(f"space.{key}={values!r}: it is a list of values, for example [{values}]")
    if not values:
        raise ValueError(f"space.{key} has no values, so there is nothing to search")
    if kind == "choice":
        texts = [canonical_json(value) for value in values]
        if len(set(texts)) < len(texts):
            raise ValueError(f"space.{key} has a value twice: {values}")
        return {"kind": kind, "values": values}
    numbers = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    if len(values) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"space.{key}: {kind} needs [LOW, HIGH] with LOW < HIGH, found {values}")
    if kind.endswith("integer") and not all(isinstance(value, int) for value in numbers):
        raise ValueError(f"space.{key}: {kind} needs whole numbers, found {values}")
    if kind.startswith("log") and numbers[0] <= 0:
        raise ValueError(f"space.{key}: {kind} needs numbers above 0, found {values}")
    return {"kind": kind, "values": values}
