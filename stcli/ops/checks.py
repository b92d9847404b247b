"""Checks of tensors at the door of an operation; none inside a loop.

A message names the letter that disagrees:
`scales: float32 [N] expected with N=1000 (from codes), got float32 [999]`.
"""

from __future__ import annotations

import torch

from stcli.errors import TensorError


class Shapes:
    """Binds shape letters to sizes, tensor by tensor, and fails on the first that disagrees."""

    def __init__(self) -> None:
        self._sizes: dict[str, tuple[int, str]] = {}

    def check(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | tuple[torch.dtype, ...], shape: str) -> None:
        """Check one tensor.

        Args:
            name: how the message calls it.
            tensor: the tensor.
            dtype: the dtype, or the dtypes allowed.
            shape: letters, numbers or `letter+1`, e.g. "N D" or "C+1"; a letter seen first here is bound.

        Raises:
            TensorError: dtype, rank or size differ.
        """
        dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
        letters = shape.split()
        if tensor.dtype not in dtypes or tensor.dim() != len(letters):
            raise TensorError(f"{name}: {self._say(dtypes, letters)} expected, got {describe(tensor)}")
        for letter, size in zip(letters, tensor.shape, strict=True):
            base, plus = (letter[:-2], 1) if letter.endswith("+1") else (letter, 0)
            if base.isdigit():
                expected, origin = int(base) + plus, ""
            else:
                known, origin = self._sizes.setdefault(base, (size - plus, name))
                expected = known + plus
            if size != expected:
                source = f" with {base}={expected - plus} (from {origin})" if origin else ""
                raise TensorError(f"{name}: {self._say(dtypes, letters)} expected{source}, got {describe(tensor)}")

    @staticmethod
    def _say(dtypes: tuple[torch.dtype, ...], letters: list[str]) -> str:
        return f"{' or '.join(str(d).removeprefix('torch.') for d in dtypes)} [{', '.join(letters)}]"


def describe(tensor: torch.Tensor) -> str:
    """`float32 [3, 4] on cpu`, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"


def check_range(name: str, numbers: torch.Tensor, end: int) -> None:
    """Fail unless all numbers are in -1 … end - 1.

    Raises:
        TensorError: naming the smallest and the largest number.
    """
    if numbers.numel():
        low, high = (int(number) for number in torch.aminmax(numbers))
        if low < -1 or high >= end:
            raise TensorError(f"{name}: numbers in -1 … {end - 1} expected, got {low} … {high}")
