"""A device that is not there: tensors that say they are far away, and an error for whatever brings them back unasked.

The values lie in ordinary CPU tensors inside, so that an operation runs to its end with true results on a machine
without a GPU. Torch is told the device `meta`, which needs no driver; `Watch` sees each operation before it runs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("meta")

ALIASES = {"aten::detach", "aten::alias", "aten::lift_fresh", "aten::lift"}
"""Operations that torch itself applies to a new tensor."""


WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_consecutive",
    "aten::unique_dim", "aten::bincount", "aten::repeat_interleave",
}  # fmt: skip
"""Operations after which the host waits for a device, since the size of their result is data."""


SENT = "sent"
"""In `Watch.waits`: a copy to the device that is not said to be `non_blocking`, so that the host waits for its end."""


class HiddenCopy(AssertionError):
    """Data came to the CPU, or was made there, in the middle of an operation."""


class Far(torch.Tensor):
    """A tensor that says it is on `FAR`; `here` has its values."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Far:
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=FAR
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise HiddenCopy(f"{func}: a tensor of the far device was used outside `Watch`")

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        """Read the values on the host, which makes the host wait for the device."""
        if Watch.current is None or not Watch.current.reads:
            raise HiddenCopy(f"tolist() of {_say(self)}")
        return self.here.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise HiddenCopy(f"numpy() of {_say(self)}")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise HiddenCopy(f"a numpy array of {_say(self)}")

    def new_tensor(self, data: Any, **options: Any) -> Far:
        """On the device `meta`, torch would forget the numbers."""
        with _disable_current_modes():
            return Far(self.here.new_tensor(data, **options))


class Watch(TorchDispatchMode):
    """Runs far operations here, and raises `HiddenCopy` where one is not far throughout.

    Single numbers may be read (`int(x)`, `bool(x)`), and Python numbers and tensors without dimensions take part
    anywhere, as torch allows. A tensor may be sent to the far device, but nothing is computed on this side.

    Args:
        reads: `tolist()` is allowed: the operation steers its loops by small tensors.
        both: work goes on on this side too, and copies that are asked for go either way; only a mixture is an error.

    Attributes:
        num_reads: single numbers read so far; each makes the host wait.
        num_launches: operations so far that wrote something on the far device.
        waits: names of the operations that made the host wait, those reads and copies either way among them.
    """

    current: Watch | None = None

    def __init__(self, reads: bool = False, both: bool = False) -> None:
        super().__init__()
        self.reads, self.both = reads, both
        self.num_reads = self.num_launches = 0
        self.waits: list[str] = []

    def __enter__(self) -> Watch:
        Watch.current = self
        self._literals = _Literals()
        self._literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._literals.__exit__(*error)
        Watch.current = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        far = [tensor for tensor in given if isinstance(tensor, Far)]
        near = [tensor for tensor in given if not isinstance(tensor, Far) and tensor.dim()]
        name = func.name().split(".")[0]
        self.num_reads += name == "aten::_local_scalar_dense"
        if far and (name in WAITING or _picks_by_mask(name, args)):
            self.waits.append(name)
        wanted = kwargs.get("device")
        goes_far = wanted is not None and torch.device(wanted).type == FAR.type
        if far and near and not (self.both and name == "aten::copy_"):
            raise HiddenCopy(f"{name}: mixes tensors of two devices: {[_say(tensor) for tensor in given]}")
        comes_back = far and wanted is not None and not goes_far
        if comes_back and not self.both:
            raise HiddenCopy(f"{name}: copies {_say(far[0])} to {wanted}")
        if goes_far and near and not kwargs.get("non_blocking"):
            self.waits.append(SENT)
        if goes_far:
            kwargs["device"] = torch.device("cpu")
        result = func(*tree_map(_here, args), **tree_map(_here, kwargs))
        if comes_back:
            self.waits.append(name)
            return result
        if not far and not goes_far:
            if not self.both and name not in ALIASES and any(_is_data(leaf) for leaf in tree_leaves(result)):
                raise HiddenCopy(f"{name}: makes or computes a tensor on the CPU")
            return result
        self.num_launches += not func.is_view and not name.startswith(("aten::empty", "aten::new_empty"))
        same = {id(tensor.here): tensor for tensor in far}  # of an operation in place, or with out=
        return tree_map(lambda leaf: same.get(id(leaf), to_far(leaf)), result)


class _Literals(TorchFunctionMode):
    """`torch.tensor([...], device=FAR)`: for the device `meta`, torch would forget the numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in (torch.tensor, torch.as_tensor) or torch.device(kwargs.get("device") or "cpu") != FAR:
            return func(*args, **kwargs)
        del kwargs["device"]
        with _disable_current_modes():
            return Far(func(*args, **kwargs))


def _picks_by_mask(name: str, args: Any) -> bool:
    """Whether an index is a boolean mask, which becomes a `nonzero`."""
    indices = args[1] if name in ("aten::index", "aten::index_put_", "aten::_index_put_impl_") else None
    return any(isinstance(item, torch.Tensor) and item.dtype == torch.bool for item in indices or ())


def _say(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def _here(value: Any) -> Any:
    return value.here if isinstance(value, Far) else value


def _is_data(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def to_far(value: Any) -> Any:
    """The same with every tensor on the far device; looks into dataclasses and tuples."""
    return _mapped(value, lambda tensor: tensor if isinstance(tensor, Far) else Far(tensor))


def to_here(value: Any) -> Any:
    """The inverse of `to_far`; a tensor that is not far is an error."""

    def bring(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, Far):
            raise HiddenCopy(f"the result {_say(tensor)} should be on the far device")
        return tensor.here

    return _mapped(value, bring)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: _mapped(item, change) for name, item in fields.items()})
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, change) for item in value)
    return value
