"""Float16 rows times a power of two, so that rows of any length keep eleven significant bits."""

from __future__ import annotations

import torch

TOP_EXPONENT = 15
"""The largest value of a row is brought into 2^14 … 2^15, just below the float16 maximum of 65,504."""

LIMIT = 126
"""Exponents lie in -126 … 126, so that their powers of two are normal float32 numbers either way."""


def row_exponents(rows: torch.Tensor) -> torch.Tensor:
    """The exponent of each float row [R, D] for `half_rows`; int8 [R], 0 for a zero row."""
    largest = rows.abs().amax(1).float()
    _, exponents = torch.frexp(largest)
    return torch.where(largest > 0, exponents - TOP_EXPONENT, 0).clamp(-LIMIT, LIMIT).to(torch.int8)


def half_rows(rows: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """The float16 [R, D] for which `row ≈ half * 2 ** exponent`; a float16 row is kept exactly."""
    return (rows.float() * powers_of_two(-exponents.int())[:, None]).half()


def powers_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """`2 ** exponent` as float32, exact, for integers in -126 … 126."""
    return ((exponents.int() + 127) << 23).view(torch.float32)
