"""The value model: a formula that makes one score of task scores, item columns and query columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch

from stcli.errors import InputError, TensorError
from stcli.formulas.functions import Kind
from stcli.formulas.parse import Formula, parse_formula
from stcli.formulas.program import FormulaProgram, Runner, compile_formula
from stcli.formulas.resolve import resolve
from stcli.formulas.sugar import NanPolicy
from stcli.formulas.terms import additive_terms
from stcli.formulas.tree import to_text
from stcli.ops.checks import describe

LOWEST: Final = torch.finfo(torch.float32).min
"""The score of a NaN, and the least of any candidate; -inf is left to empty slots."""


@dataclass(frozen=True)
class ValueModel:
    """A formula with checked names, ready to score.

    Attributes:
        name: what it is called in options and messages.
        formula: as parsed.
        kinds: kind of each name that it reads, see `resolve`.
        nan: "lowest": a candidate whose formula gives NaN (a null that no `coalesce` caught, 0/0) gets `LOWEST`;
            "error": it stops the run.
    """

    name: str
    formula: Formula
    kinds: dict[str, Kind]
    nan: NanPolicy = "lowest"

    @classmethod
    def make(
        cls,
        name: str,
        text: str,
        names: Mapping[str, str],
        *,
        open_scopes: Sequence[str] = (),
        nan: NanPolicy = "lowest",
    ) -> ValueModel:
        """Parse and check a formula; see `resolve` for `names` and `open_scopes`.

        Raises:
            FormulaError: it does not parse, or names something unknown.
        """
        formula = parse_formula(text)
        return cls(name, formula, resolve(formula, names, open_scopes), nan)

    @property
    def names(self) -> tuple[str, ...]:
        """What it reads: `task.like`, `item.price` and so on."""
        return tuple(self.kinds)

    def columns(self, scope: str) -> tuple[str, ...]:
        """The names of one scope without it: columns of "item" or "query", or tasks."""
        return tuple(name[len(scope) + 1 :] for name in self.kinds if name.startswith(scope + "."))

    @cached_property
    def program(self) -> FormulaProgram:
        """The formula as steps."""
        return compile_formula(self.formula.tree)

    def evaluate(self, values: Mapping[str, torch.Tensor], valid: torch.Tensor | None = None) -> torch.Tensor:
        """Score candidates.

        Every operation rounds to float32 and follows IEEE 754: x/0 and what overflows is infinite, 0/0 is NaN. A score
        is finite: infinities become the largest float32 of their sign, NaN follows the policy. The score of a
        candidate does not depend on its place or on what else is scored.

        Args:
            values: float32 (or bool for a boolean) [B, M], or what broadcasts to it such as [B, 1] for a column of the
                queries, for each of `names`; NaN for null.
            valid: bool [B, M], the slots that hold a candidate; None: all.

        Returns:
            float32 [B, M]; -inf in slots that are not valid. Memory: 4 * B * M bytes and a few tiles.

        Raises:
            TensorError: a tensor is missing or does not fit.
            InputError: NaN where the policy is "error".
        """
        shape = _common_shape(self.kinds, values, valid)
        scores, num_nan = torch.empty(shape, device=_device(values)), 0
        for part, tile in _tiles(self.program, values, shape):
            if self.nan == "error":
                wrong = tile.isnan() if valid is None else tile.isnan() & valid.expand(shape).reshape(-1)[part]
                num_nan += int(wrong.sum())
            torch.nan_to_num(tile, nan=LOWEST, posinf=-LOWEST, neginf=LOWEST, out=scores.view(-1)[part])
        if num_nan:
            raise InputError(
                f"value model {self.name!r}: gives NaN for {num_nan} of {scores.numel()} candidates; guard nulls with "
                "coalesce(x, 0) and divisions with if, or pack it with the nan policy 'lowest'"
            )
        return scores if valid is None else scores.masked_fill_(~valid, -torch.inf)

    def parts(self, values: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        """What each term adds to the score: text and float32 [B, M] of each, in the order of the formula.

        A sum has a part for each term, with its sign; a sum times a factor has its terms times the factor. The parts
        add up to the formula's value up to float32 rounding; what is no sum is one part. Infinities and NaN stay.
        """
        shape = _common_shape(self.kinds, values, None)
        found = []
        for term in additive_terms(self.formula.tree):
            values_of_term = torch.empty(shape, device=_device(values))
            for part, tile in _tiles(compile_formula(term), values, shape):
                values_of_term.view(-1)[part] = tile
            found.append((to_text(term), values_of_term))
        return found


def _common_shape(
    kinds: Mapping[str, Kind], values: Mapping[str, torch.Tensor], valid: torch.Tensor | None
) -> tuple[int, int]:
    """[B, M] of the inputs, each checked."""
    given = {} if valid is None else {"valid": valid}
    for name, kind in kinds.items():
        if name not in values:
            raise TensorError(f"value model: {name} is read and was not given")
        tensor = values[name]
        if tensor.dim() != 2 or tensor.dtype != (torch.bool if kind == "boolean" else torch.float32):
            expected = "bool" if kind == "boolean" else "float32"
            raise TensorError(f"{name}: {expected} [B, M] or [B, 1] expected, got {describe(tensor)}")
        given[name] = tensor
    try:
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in (given or values).values()))
    except RuntimeError as error:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in given.items())
        raise TensorError(f"value model: inputs of one [B, M] expected, got {shapes}") from error
    if len(shape) != 2:
        raise TensorError("value model: a formula without names needs `valid` or other values for the shape [B, M]")
    return shape[0], shape[1]


def _device(values: Mapping[str, torch.Tensor]) -> torch.device:
    return next((tensor.device for tensor in values.values()), torch.device("cpu"))


def _tiles(
    program: FormulaProgram, values: Mapping[str, torch.Tensor], shape: tuple[int, int]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Run a program over [B, M], flat: the values of each slice, good until the next one.

    No input is copied but its last tile, and what broadcasts.
    """
    count = shape[0] * shape[1]
    runner = Runner(program, _device(values), count)
    feeds = {name: _Feed(values[name], shape, runner.tile) for name in program.names}
    for start in range(0, count, runner.tile):
        stop = min(start + runner.tile, count)
        yield slice(start, stop), runner.run({n: f.tile(start, stop) for n, f in feeds.items()})[: stop - start]


class _Feed:
    """Cuts an input of shape [B, M], or broadcasting to it, into flat tiles."""

    def __init__(self, tensor: torch.Tensor, shape: tuple[int, int], size: int) -> None:
        self.width, self.size = shape[1], size
        self.column = tensor.shape[1] == 1 and shape[1] > 1
        self.tensor = tensor.expand(shape[0], -1) if self.column else tensor.expand(shape).reshape(-1)
        # Whole lines that cover any tile, where lines are shorter than a tile; zero: what stands behind the last value.
        room = size if not self.column or self.width > size else size + 2 * self.width
        self.buffer = torch.zeros(room, dtype=tensor.dtype, device=tensor.device)

    def tile(self, start: int, stop: int) -> torch.Tensor:
        """Values `start` to `stop` of the flat input, [size]; those behind `stop` are of no account."""
        if not self.column:
            if stop - start == self.size:
                return self.tensor[start:stop]
            self.buffer[: stop - start] = self.tensor[start:stop]
            return self.buffer
        first, end = start // self.width, -(-stop // self.width)
        if self.width <= self.size:
            self.buffer[: (end - first) * self.width].view(-1, self.width).copy_(self.tensor[first:end])
            offset = start - first * self.width
            return self.buffer[offset : offset + self.size]
        for line in range(first, end):
            low, high = max(line * self.width, start), min((line + 1) * self.width, stop)
            self.buffer[low - start : high - start] = self.tensor[line]
        return self.buffer
