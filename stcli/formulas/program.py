"""Formulas as straight-line programs over tiles of float32.

A part that occurs twice is computed once, and what depends on constants only is computed when compiling. Each step
is one torch call on a tile of a fixed size, the last one padded: torch rounds the few elements behind the last whole
vector otherwise (`sigmoid`, `pow` and `logit` on the CPU: 2 to 7 % of values differ when computed alone), and a score
would depend on its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from stcli.formulas.functions import Kind, signature
from stcli.formulas.tree import Name, Node, Number, post_order

TILE: Final = 65_536
"""Values of a tile on the CPU, 256 KiB a register. A sum of three weighted tasks, ns a value on one core of a busy
machine: 4,096: 11.8, 16,384: 4.6, 65,536: 2.8."""

TILE_FAR: Final = 1 << 22
"""Values of a tile on a GPU, where each call is a launch and rounding does not depend on the place."""

_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.div, "^": torch.pow, "neg": torch.neg,
    "<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge, "==": torch.eq, "!=": torch.ne,
    "and": torch.logical_and, "or": torch.logical_or, "not": torch.logical_not,
    "if": torch.where, "min": torch.minimum, "max": torch.maximum,
    "abs": torch.abs, "sqrt": torch.sqrt, "exp": torch.exp, "log": torch.log, "log1p": torch.log1p,
    "sigmoid": torch.sigmoid, "logit": torch.logit,
}  # fmt: skip
"""What an operation calls; `clip`, `step`, `coalesce` and `is_null` are made of others, see `_Compiler.lower`."""


@dataclass(frozen=True)
class Instruction:
    """One step: `registers[into] = operation(*arguments)`.

    Attributes:
        operation: a key of `_CALLS`.
        arguments: numbers of values, those of a name, a constant or an earlier instruction.
        value: number of the value that it makes.
        kind: what that is.
        into: the register of its kind that holds it; free again after the last use.
    """

    operation: str
    arguments: tuple[int, ...]
    value: int
    kind: Kind
    into: int


@dataclass(frozen=True)
class FormulaProgram:
    """A compiled formula.

    Attributes:
        names: value numbers of the names that are read.
        constants: value numbers and values of the constants.
        instructions: in order.
        result: value number of the score.
        registers: how many hold numbers, and how many hold booleans.
    """

    names: dict[str, int]
    constants: dict[int, float]
    instructions: tuple[Instruction, ...]
    result: int
    registers: dict[Kind, int]


def compile_formula(tree: Node) -> FormulaProgram:
    """Make a program of a tree whose types were checked."""
    compiler = _Compiler()
    done: list[int] = []
    for node in post_order(tree):
        if isinstance(node, Number):
            done.append(compiler.constant(node.value))
        elif isinstance(node, Name):
            done.append(compiler.name(node.name))
        else:
            arguments = done[-len(node.arguments) :]
            del done[-len(node.arguments) :]
            done.append(compiler.lower(node.operation, arguments))
    return compiler.finish(done[0])


class _Compiler:
    """Numbers the values: equal operations on equal values are one value."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}
        self.names: dict[str, int] = {}
        self.constants: dict[int, float | bool] = {}
        self.steps: list[tuple[str, tuple[int, ...], int]] = []

    def constant(self, value: float | bool) -> int:
        number = self.numbers.setdefault((type(value), repr(value)), len(self.numbers))  # 0.0 and -0.0 differ
        self.constants[number] = value
        return number

    def name(self, name: str) -> int:
        self.names[name] = self.numbers.setdefault(("name", name), len(self.numbers))
        return self.names[name]

    def lower(self, operation: str, arguments: list[int]) -> int:
        """The value of an operation, through the calls that there are."""
        if operation == "clip":
            value, low, high = arguments
            return self.apply("min", self.apply("max", value, low), high)
        if operation == "step":
            return self.apply(
                "if", self.apply(">=", *arguments, self.constant(0.0)), self.constant(1.0), self.constant(0.0)
            )
        value = arguments[0]
        if operation == "is_null":
            return self.apply("!=", value, value)
        if operation == "coalesce":
            for other in arguments[1:]:
                value = self.apply("if", self.apply("!=", value, value), other, value)
            return value
        if operation in ("min", "max"):
            for other in arguments[1:]:
                value = self.apply(operation, value, other)
            return value
        return self.apply(operation, *arguments)

    def apply(self, operation: str, *arguments: int) -> int:
        key = (operation, arguments)
        if key not in self.numbers:
            if all(argument in self.constants for argument in arguments):
                return self.constant(self._folded(operation, arguments))
            if operation == "if" and arguments[0] in self.constants:
                return arguments[1] if self.constants[arguments[0]] else arguments[2]
            self.numbers[key] = len(self.numbers)
            self.steps.append((operation, arguments, self.numbers[key]))
        return self.numbers[key]

    def _folded(self, operation: str, arguments: tuple[int, ...]) -> float | bool:
        # On a full vector, as the same operation on a column of such values would be computed.
        given = [
            torch.full((64,), self.constants[argument], dtype=_dtype(self.constants[argument]))
            for argument in arguments
        ]
        result: float | bool = _CALLS[operation](*given)[0].item()
        return result

    def finish(self, result: int) -> FormulaProgram:
        """Leave out what the result does not need and give registers."""
        last_use: dict[int, int] = {result: len(self.steps)}
        needed = []
        for place in reversed(range(len(self.steps))):
            operation, arguments, number = self.steps[place]
            if number in last_use:
                needed.append(place)
                for argument in arguments:
                    last_use.setdefault(argument, place)
        free: dict[Kind, list[int]] = {"number": [], "boolean": []}
        registers: dict[Kind, int] = {"number": 0, "boolean": 0}
        held: dict[int, tuple[Kind, int]] = {}
        instructions = []
        for place in reversed(needed):
            operation, arguments, number = self.steps[place]
            kind = signature(operation).gives
            for argument in set(arguments):
                if last_use[argument] == place and argument in held:
                    of, register = held.pop(argument)
                    free[of].append(register)
            if free[kind]:
                into = free[kind].pop()
            else:
                into = registers[kind]
                registers[kind] += 1
            held[number] = (kind, into)
            instructions.append(Instruction(operation, arguments, number, kind, into))
        names = {name: number for name, number in self.names.items() if number in last_use}
        constants = {number: value for number, value in self.constants.items() if number in last_use}
        return FormulaProgram(names, constants, tuple(instructions), result, registers)


def _dtype(value: float | bool) -> torch.dtype:
    return torch.bool if isinstance(value, bool) else torch.float32


class Runner:
    """Runs a program over flat inputs, tile by tile, with all temporaries allocated once.

    Args:
        program: what to run.
        device: where the inputs are.
        count: values in all.
    """

    def __init__(self, program: FormulaProgram, device: torch.device, count: int) -> None:
        self.program = program
        limit = TILE if device.type == "cpu" else TILE_FAR
        # A multiple of 64 in any case: no vector is ever cut.
        self.tile = min(limit, -(-max(count, 1) // 64) * 64)
        self.registers = {
            "number": torch.empty(program.registers["number"], self.tile, device=device),
            "boolean": torch.empty(program.registers["boolean"], self.tile, device=device, dtype=torch.bool),
        }
        self.constants = {
            number: torch.tensor(value, dtype=_dtype(value), device=device)
            for number, value in program.constants.items()
        }

    def run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The score of one tile of inputs, [tile] each; good until the next call."""
        program = self.program
        values: dict[int, Any] = dict(self.constants)
        for name, number in program.names.items():
            values[number] = inputs[name]
        for step in program.instructions:
            arguments = [values[argument] for argument in step.arguments]
            if step.operation == "^" and step.arguments[1] in program.constants:
                arguments[1] = program.constants[
                    step.arguments[1]
                ]  # a plain number: x^2 is one multiplication, not pow
            out = self.registers[step.kind][step.into]
            _CALLS[step.operation](*arguments, out=out)
            values[step.value] = out
        result = values[program.result]
        return result if result.dim() else result.expand(self.tile)
