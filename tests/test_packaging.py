"""What pyproject.toml says of the tree is true: packages, kernel sources, pins, and a native library that was built."""

from __future__ import annotations

import re
import shutil
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import stcli
from stcli.ops import native

TREE = Path(__file__).parents[1]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def requirement_name(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower()


def test_every_folder_is_a_package() -> None:
    root = Path(stcli.__file__).parent
    folders = {"stcli"} | {f"stcli.{path.parent.relative_to(root).as_posix()}" for path in root.glob("*/*.py")}
    assert set(SETUPTOOLS["packages"]) - {"stcli._kernels"} == folders - {"stcli._kernels"}


def test_kernel_sources_are_installed_and_compiled() -> None:
    files = {entry.name for entry in resources.files("stcli._kernels").iterdir()}
    (extension,) = SETUPTOOLS["ext-modules"]
    assert extension["sources"] == sorted(f"kernels/{name}" for name in files if name.endswith(".cpp"))
    assert extension["depends"] == sorted(f"kernels/{name}" for name in files if name.endswith(".h"))


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_native_library_was_built() -> None:
    """The build is optional, so a kernel that does not compile would otherwise go unnoticed."""
    assert native.library() is not None, native.why_missing()


def test_every_direct_dependency_is_pinned() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    direct = [*PROJECT["project"]["dependencies"], *(line for extra in extras.values() for line in extra)]
    lines = (TREE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {requirement_name(line) for line in lines if line and line[0] != "#"}
    assert {requirement_name(requirement) for requirement in direct} <= pinned


def test_version_is_one() -> None:
    assert stcli.__version__ == metadata.version("stcli")
    assert f"## {stcli.__version__}" in (TREE / "CHANGELOG.md").read_text(encoding="utf-8")
