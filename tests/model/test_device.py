"""Which device a name stands for, and what is said where that may surprise."""

import pytest
import torch

import stcli
from stcli.errors import DeviceError
from stcli.model import device as devices
from stcli.model.device import choose_device, choose_devices, describe_device, device_warnings, why_no_gpu
from stcli.ops import cuda

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(params=["no CUDA", "no GPU"])
def without(request, monkeypatch):
    """Torch cannot use a GPU, for one of two reasons."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None if request.param == "no CUDA" else "12.8")
    return {"no CUDA": "torch was built without CUDA", "no GPU": "torch finds no usable GPU"}[request.param]


@pytest.fixture
def with_gpus(monkeypatch):
    """Torch finds three GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Toy GPU")


def test_auto_falls_back_and_says_so_in_one_line(without, monkeypatch, tiny, tmp_path):
    monkeypatch.setattr(devices, "_driver_is_there", lambda: False)
    assert choose_device("auto") == CPU
    assert describe_device(CPU, "auto").endswith(f"; no GPU: {without})")
    assert device_warnings("auto", CPU) == [], "most machines have no GPU"
    built = stcli.build_index(tiny.items, tmp_path / "index")
    assert built["device"] == f"cpu (no GPU: {without})"
    told = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", exact=True, limit=1)
    assert (told["device"], told["warnings"]) == (describe_device(CPU, "auto"), [])


def test_a_gpu_that_is_not_used_is_worth_a_warning(without, monkeypatch):
    monkeypatch.setattr(devices, "_driver_is_there", lambda: True)
    assert device_warnings("auto", CPU) == [f"a GPU is there, but the CPU is used: {without}"]
    assert device_warnings("cpu", CPU) == []


def test_the_cpu_that_was_asked_for_needs_no_reason(without):
    assert why_no_gpu("cpu", CPU) is None
    assert "GPU" not in describe_device(CPU, "cpu")


def test_a_gpu_that_cannot_be_had_is_one_sentence(without):
    for name in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match=f"^--device {name}: {without}; use --device cpu, or install .*$"):
            choose_device(name)
    with pytest.raises(DeviceError, match="'cuda:all': expected auto, cpu, cuda or cuda:<number>"):
        choose_device("cuda:all")  # of commands that work on one device
    with pytest.raises(DeviceError, match=f"^--device cuda: {without}"):
        choose_devices("cuda:all")


def test_a_gpu_is_taken(with_gpus, monkeypatch):
    monkeypatch.setattr(cuda, "why_not", lambda device: None)
    assert choose_device("auto") == torch.device("cuda")
    assert describe_device(GPU, "auto") == "cuda:0 (Toy GPU, kernels)"
    assert device_warnings("auto", GPU) == []
    assert [str(device) for device in choose_devices("cuda:all")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [str(device) for device in choose_devices("cuda:2")] == ["cuda:2"]
    with pytest.raises(DeviceError, match=r"--device cuda:3: this machine has 3 GPU\(s\), numbered from 0"):
        choose_device("cuda:3")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_without_cupy_torch_works_in_place_of_the_kernels(with_gpus, monkeypatch, name):
    monkeypatch.setattr(cuda, "why_not", lambda device: "CuPy cannot be imported; install stcli[gpu]")
    (text,) = device_warnings(name, GPU)
    assert text == (
        "cuda:0: torch's own operations run in place of the kernels: CuPy cannot be imported; install stcli[gpu]"
    )
    assert "torch forms: CuPy cannot be imported" in describe_device(GPU, name)
