"""Dataclasses of tensors, moved to a device."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch


def moved(value: Any, device: str) -> Any:
    """The same with every tensor on `device`; looks into dataclasses and tuples."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: moved(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, tuple | list):
        return type(value)(moved(item, device) for item in value)
    return value
