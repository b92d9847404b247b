"""How the report writes numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def recall(value: float | None, digits: int = 4) -> str:
    """A recall, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(part: Mapping[str, Any]) -> str:
    """Both ends of an interval, or a dash."""
    return "–" if part["low"] is None else f"{part['low']:.4f} … {part['high']:.4f}"


def percent(share: float) -> str:
    """A share in percent, two digits that matter."""
    return f"{100 * share:.2g} %"


def bad(count: int) -> str:
    """A count of what should not be, in red unless 0."""
    return f'<span class="no">{count:,}</span>' if count else "0"


def number(value: float) -> str:
    """Three digits that matter, and no more behind the point than they need."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def in_bytes(count: int) -> str:
    """Bytes as text."""
    return " ".join(size(count))


def size(count: int) -> tuple[str, str]:
    """Bytes as a number and its unit."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.1f}", unit
    return str(count), "B"
