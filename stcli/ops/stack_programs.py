"""Filter programs in postfix order (`Program`, `TermProgram`): their check, and a stack machine for many at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stcli.errors import TensorError
from stcli.types import OP_AND, OP_NOT, OP_OR


def check_programs(ops: torch.Tensor, op_offsets: torch.Tensor, num_leaves: int, max_depth: int) -> None:
    """Check that each program is whole: known ops, leaves that exist, and one mask left at its end.

    Args:
        ops: int32 [T].
        op_offsets: int64 [F + 1].
        num_leaves: L.
        max_depth: largest stack that a program may need.

    Raises:
        TensorError: naming the first program at fault.
    """
    if len(op_offsets) == 0 or int(op_offsets[0]) != 0 or int(op_offsets[-1]) != len(ops):
        raise TensorError(
            f"op_offsets: first 0 and last {len(ops)} (from ops) expected, got {op_offsets.tolist()[:3]} …"
        )
    lengths = op_offsets[1:] - op_offsets[:-1]
    if bool((lengths < 1).any()):
        raise TensorError(
            f"op_offsets: ascending with no empty program expected, program {_first(lengths < 1)} has length < 1"
        )
    program = torch.repeat_interleave(lengths)
    change = torch.where(ops >= 0, 1, torch.where(ops == OP_NOT, 0, -1))
    level = change.cumsum(0)
    before = level[op_offsets[:-1]] - change[op_offsets[:-1]]
    depth = level - before[program]
    wrong = (ops < OP_NOT) | (ops >= num_leaves) | (depth < 1) | (depth > max_depth)
    wrong[op_offsets[1:] - 1] |= depth[op_offsets[1:] - 1] != 1
    if bool(wrong.any()):
        place = _first(wrong)
        raise TensorError(
            f"ops: program {int(program[place])} has op {int(ops[place])} with a stack of {int(depth[place])} after "
            f"it; leaves 0 … {num_leaves - 1}, ops -1 … -3, a stack of 1 … {max_depth} and 1 at the end expected"
        )


def run_programs(
    ops: torch.Tensor,
    op_offsets: torch.Tensor,
    programs: torch.Tensor,
    stack: torch.Tensor,
    leaf_values: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Run one program for each line, all lines in step; AND, OR and NOT work on bits, so words and booleans both do.

    Args:
        ops: int32 [T].
        op_offsets: int64 [F + 1].
        programs: int64 [X], the program of each line.
        stack: bool or int64 [max_depth, X, ...], overwritten; max_depth is the largest stack that a program needs.
        leaf_values: called with lines int64 [Y] and the leaf that each pushes, int64 [Y]; returns [Y, ...].

    Returns:
        [X, ...], a view of `stack`.
    """
    starts, ends = op_offsets[programs], op_offsets[programs + 1]
    depth = torch.zeros_like(programs)
    longest = int((ends - starts).max()) if len(programs) else 0
    for step in range(longest):
        lines = torch.nonzero(starts + step < ends).squeeze(1)
        op = ops[starts[lines] + step]
        pushing, inverting = op >= 0, op == OP_NOT

        which = lines[pushing]
        if len(which):
            stack[depth[which], which] = leaf_values(which, op[pushing].long())
            depth[which] += 1

        which = lines[inverting]
        stack[depth[which] - 1, which] = ~stack[depth[which] - 1, which]

        for joining, join in ((op == OP_AND, torch.bitwise_and), (op == OP_OR, torch.bitwise_or)):
            which = lines[joining]
            depth[which] -= 1
            stack[depth[which] - 1, which] = join(stack[depth[which] - 1, which], stack[depth[which], which])
    return stack[0]


def _first(wrong: torch.Tensor) -> int:
    return int(torch.nonzero(wrong)[0])
