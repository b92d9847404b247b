"""The named weights of a learned layer stack."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from stcli.ops.tiles import linear


class Weights(nn.Module):
    """Weights by their dotted names; they move with `.to(device)`.

    Args:
        tensors: by name.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "/"), tensor, persistent=False)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.get_buffer(name.replace(".", "/"))

    def linear(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """The linear layer `name.weight` [outputs, inputs], with `name.bias` if there is one, on a tile of rows."""
        bias = getattr(self, f"{name}.bias".replace(".", "/"), None)
        return linear(inputs, self[f"{name}.weight"], bias)
