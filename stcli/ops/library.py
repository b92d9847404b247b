"""The operations of the search as custom operators of torch, `torch.ops.stcli.*`, for `torch.export` and its kin.

An operator takes what the operation of its name takes, in that order, but for `backend`, `out` and `unsure`; torch
knows no dataclasses, so their fields stand in their place (`flat` spells them out). All this is read off the operation.
The fake form tells the shape of the result without doing the work. A process that loads an exported program must have
imported this module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from stcli.ops.choose_probes import choose_probes
from stcli.ops.filter_match import filter_match
from stcli.ops.filter_probes import filter_probes
from stcli.ops.quantize_rows import quantize_rows
from stcli.ops.rescore import rescore
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from stcli.ops.take_best import take_best
from stcli.ops.verify_terms import verify_terms
from stcli.types import BitMatrix, Candidates, Program, Quantized, Spans

_SCALARS = {Tensor: "Tensor", int: "SymInt", float: "float", bool: "bool"}

_LEFT_OUT = ("backend", "out", "unsure")


def flat(operation: Callable, *given: Any, **named: Any) -> list[Any]:
    """The arguments of a call of an operation as its operator takes them."""
    bound = inspect.signature(operation).bind(*given, **named)
    bound.apply_defaults()
    hints = get_type_hints(operation)
    return [part for one in _taken(operation) for part in _spread(hints[one.name], bound.arguments[one.name])]


def _taken(operation: Callable) -> list[inspect.Parameter]:
    return [one for one in inspect.signature(operation).parameters.values() if one.name not in _LEFT_OUT]


def _parts(hint: Any) -> list[tuple[str, Any]] | None:
    """Names and types of what a dataclass or tuple consists of; None for what torch takes as it is."""
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return [(field.name, hints[field.name]) for field in fields(hint)]
    return [(str(place), part) for place, part in enumerate(get_args(hint))] if get_origin(hint) is tuple else None


def _without_none(hint: Any) -> tuple[Any, bool]:
    """A type without `| None`, and whether it had that."""
    options = get_args(hint)
    if NoneType not in options:
        return hint, False
    return next(option for option in options if option is not NoneType), True


def _declare(name: str, hint: Any, default: str, optional: bool = False) -> list[str]:
    """A parameter as torch's schema language writes it, spelled out."""
    hint, may_miss = _without_none(hint)
    optional, parts = optional or may_miss, _parts(hint)
    if parts is not None:
        return [text for part, type_ in parts for text in _declare(f"{name}_{part}", type_, default, optional)]
    return [f"{_SCALARS[hint]}{'?' if optional else ''} {name}{default}"]


def _spread(hint: Any, value: Any) -> list[Any]:
    """A value as the tensors and numbers that it consists of; None for each of them where it is missing."""
    hint, _ = _without_none(hint)
    parts = _parts(hint)
    if parts is None:
        return [value]
    if get_origin(hint) is tuple:
        values = value or [None] * len(parts)
    else:
        values = [None if value is None else getattr(value, name) for name, _ in parts]
    return [one for (_, type_), part in zip(parts, values, strict=True) for one in _spread(type_, part)]


def _gather(hint: Any, given: Iterator[Any]) -> Any:
    """What `_spread` took apart; None where the first part of something optional is missing."""
    hint, optional = _without_none(hint)
    parts = _parts(hint)
    if parts is None:
        return next(given)
    values = [_gather(type_, given) for _, type_ in parts]
    if optional and values[0] is None:
        return None
    return tuple(values) if get_origin(hint) is tuple else hint(*values)


def _register(operation: Callable, fake: Callable) -> Callable:
    """Make an operator of an operation; `fake` takes the same arguments and gives empty tensors of the right shapes."""
    name, hints = operation.__name__, get_type_hints(operation)
    taken = _taken(operation)
    declared: list[str] = []
    defaults: list[Any] = []
    for parameter in taken:
        default = "" if parameter.default is parameter.empty else f"={parameter.default}"
        declared += _declare(parameter.name, hints[parameter.name], default)
        defaults += [parameter.default] * (len(declared) - len(defaults))
    results = _parts(hints["return"])
    returned = "Tensor" if results is None else f"({', '.join('Tensor' for _ in results)})"

    def call(form: Callable, given: tuple) -> Any:
        values = iter([*given, *defaults[len(given) :]])  # torch leaves out what equals the defaults at the end
        found = form(**{parameter.name: _gather(hints[parameter.name], values) for parameter in taken})
        return found if results is None else tuple(_spread(hints["return"], found))

    operator = torch.library.custom_op(
        f"stcli::{name}",
        lambda *given: call(operation, given),
        mutates_args=(),
        schema=f"({', '.join(declared)}) -> {returned}",
    )
    operator.register_fake(lambda *given: call(fake, given))
    return operator


# In the fake forms sizes come from `shape`: len() would fix the number of queries in an exported program.


def _quantized(vectors: Tensor, scale: float | None, pad_to: int) -> Quantized:
    rows, dim = vectors.shape
    codes = vectors.new_empty(rows, (dim + pad_to - 1) // pad_to * pad_to, dtype=torch.int8)
    return Quantized(codes, vectors.new_empty(rows, dtype=torch.float32))


def _words(matrix: BitMatrix, program: Program, places: Tensor | None) -> Tensor:
    num_words = matrix.own.shape[1] if places is None else places.shape[0]
    return matrix.own.new_empty(program.op_offsets.shape[0] - 1, num_words)


def _spans(matrix: BitMatrix, probes: Tensor, **_: Any) -> Spans:
    return Spans(matrix.own.new_empty(torch.library.get_ctx().new_dynamic_size(min=1)), torch.empty_like(probes))


def _probes(queries: Quantized, num_probes: int, **_: Any) -> Tensor:
    return queries.codes.new_empty(queries.scales.shape[0], num_probes, dtype=torch.int64)


def _candidates(queries: Quantized, k0: int, **_: Any) -> Candidates:
    shape = queries.scales.shape[0], k0
    return Candidates(queries.scales.new_empty(shape, dtype=torch.int64), queries.scales.new_empty(shape))


def _best(rows: Tensor, scores: Tensor, k: int, **_: Any) -> Candidates:
    return Candidates(rows.new_empty(rows.shape[0], k), scores.new_empty(rows.shape[0], k))


quantize_rows_op = _register(quantize_rows, _quantized)
filter_match_op = _register(filter_match, _words)
filter_probes_op = _register(filter_probes, _spans)
choose_probes_op = _register(choose_probes, _probes)
search_clusters_op = _register(search_clusters, _candidates)
search_rows_op = _register(search_rows, _candidates)
take_best_op = _register(take_best, _best)
rescore_op = _register(rescore, lambda queries, rows, **_: queries.new_empty(rows.shape))
verify_terms_op = _register(verify_terms, lambda rows, **_: rows.new_empty(rows.shape, dtype=torch.bool))
