"""Float16 rows times a power of two, so that rows of any length keep eleven significant bits."""

from __future__ import annotations

import torch

TOP_EXPONENT = 15
"""The largest value of a row is brought into 2^14 … 2^15, just below the float16 maximum of 65,504."""


def half_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split float rows [R, D] into float16 [R, D] and int8 exponents [R]: `row ≈ half * 2 ** exponent`.

    A float16 row is kept exactly. A zero row has exponent 0.
    """
    wide = rows.float()
    largest = wide.abs().amax(1) if wide.shape[1] else torch.zeros(len(wide))
    _, exponents = torch.frexp(largest)
    exponents = torch.where(largest > 0, exponents - TOP_EXPONENT, 0).clamp(-127, 127)
    return torch.ldexp(wide, -exponents[:, None]).half(), exponents.to(torch.int8)
