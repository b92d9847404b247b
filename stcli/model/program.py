"""A user tower that is a `torch.export` program: code, which runs only with consent and only as it was packed.

`torch.export.load` unpickles what the file holds besides weights, looks operators up by name and evaluates the
expressions of its shapes; `.module()` executes its guards. So reading a program is already running it, and no check of
the file replaces knowing where it comes from. Until `allowed` is set the bytes are not looked at; then they must have
the SHA-256 that was pinned when they were packed, which finds a changed program, but not a changed artifact.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from stcli.errors import FormatError, InputError
from stcli.model.history import History
from stcli.model.layers import Weights
from stcli.model.tower_config import TowerConfig

CODE = "program"
"""Name of the array with the file, behind the prefix of a tower."""

CONSENT = "look at where it comes from, then pass --allow-model-code (allow_model_code=True)"


class ProgramTower(nn.Module):
    """Makes vectors by calling a program, always with `batch` requests: what are too few are joined by empty ones.

    So a program exported for one batch size will do, a single request is like any other, and its vectors do not depend
    on how many others come with it. The program runs on the CPU, whatever the device of the model.

    Args:
        config: of the kind `program`.
        code: uint8 [.], the file.
        sha256: that the file must have.
    """

    def __init__(self, config: TowerConfig, code: np.ndarray, sha256: str) -> None:
        super().__init__()
        assert config.program is not None
        self.config, self.sha256, self.batch = config, sha256, config.program.batch
        self.allowed = False
        self._code = code
        self._called: Callable[..., torch.Tensor] | None = None
        # A category is the number of its value: 1 for the first one, 0 for others.
        self.weights = Weights(
            {
                f"columns.{column.name}.weight": torch.arange(len(column.values) + 1.0)[:, None]
                for column in config.columns
                if column.kind == "category"
            }
        )

    def load(self) -> Callable[..., torch.Tensor]:
        """The program, read at the first call.

        Raises:
            InputError: nobody allowed it to run.
            FormatError: it is another one than was packed, or cannot be read.
        """
        if self._called is None:
            if not self.allowed:
                raise InputError(f"the artifact's tower is a torch.export program, which is code; {CONSENT}")
            content = self._code.tobytes()
            found = hashlib.sha256(content).hexdigest()
            if found != self.sha256:
                raise FormatError(
                    f"the artifact's tower program has the SHA-256 {found[:16]}…, not {self.sha256[:16]}… as it was "
                    "packed, so it was changed and is not run; pack it again"
                )
            try:
                # Its call, not itself: modules are registered, but a program can be neither moved nor set to eval.
                self._called = torch.export.load(io.BytesIO(content)).module().__call__
            except Exception as error:  # whatever its code raises
                raise FormatError(f"the artifact's tower program cannot be read ({_first_line(error)})") from error
        return self._called

    def forward(self, history: History | None, features: torch.Tensor) -> torch.Tensor:
        """The vectors of B requests, as `Tower` gives them.

        Args:
            history: of the requests, at most `max_history` events each; None if the program reads none.
            features: float32 [B, F], the numbers of the columns.

        Returns:
            float32 [B, T, D] on the CPU.
        """
        inputs = self._inputs(history, features.cpu())
        parts = [self._call([given[start : start + self.batch] for given in inputs])
                 for start in range(0, len(features), self.batch)]  # fmt: skip
        return torch.cat(parts) if parts else torch.zeros(0, *self._shape[1:])

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.batch, max(len(self.config.tasks), 1), self.config.dim

    def _inputs(self, history: History | None, features: torch.Tensor) -> list[torch.Tensor]:
        """What the program is called with, for all requests: items, lengths, times, features, those that it reads."""
        inputs = []
        if self.config.max_history:
            assert history is not None
            offsets = history.offsets.cpu()
            lengths = offsets.diff()
            inside = torch.arange(self.config.max_history) < lengths[:, None]
            items = torch.zeros(*inside.shape, self.config.dim)
            items[inside] = history.items.cpu()
            inputs += [items, lengths]
            if self.config.reads_times:
                assert history.times is not None
                times = torch.zeros(inside.shape, dtype=torch.int64)
                times[inside] = history.times.cpu()
                inputs.append(times)
        return [*inputs, features] if self.config.columns else inputs

    def _call(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        count = len(inputs[0])
        filled = [torch.cat([given, given.new_zeros(self.batch - count, *given.shape[1:])]) for given in inputs]
        program = self.load()
        try:
            with torch.no_grad():
                found = program(*filled)
        except Exception as error:  # whatever its code raises
            raise InputError(
                f"the tower program cannot be called with {', '.join(str(list(given.shape)) for given in filled)} "
                f"({_first_line(error)}); export it for these inputs (TOWERS.md)"
            ) from error
        shapes = (self._shape, self._shape[::2]) if self._shape[1] == 1 else (self._shape,)
        if not isinstance(found, torch.Tensor) or tuple(found.shape) not in shapes or not found.is_floating_point():
            told = f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise InputError(f"the tower program gives {told}; expected floats {list(self._shape)}, as its config says")
        return found.float().reshape(self._shape)[:count]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
