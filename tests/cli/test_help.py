"""The help of every command: its examples, its sections, every option once."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

import stcli
from stcli.cli.main import app
from stcli.cli.sections import SECTIONS

COMMANDS = ("build-index", "pack-model", "update", "retrieve", "bench", "compare", "inspect", "explain")


def help_of(cli, *words: str) -> str:
    code, out, err = cli(*words, "--help")
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(cli, command):
    text = help_of(cli, command)
    assert text.startswith(f"Usage: stcli {command}")
    assert re.search(rf"Examples:\n +stcli {command} ", text)
    assert cli(command, "-h")[1] == text
    code, out, err = cli(command)
    assert code in (0, 2)
    assert text in (out + err)
    for option in re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE):
        if option not in ("--help",):
            line = text[text.index(option) :].split("\n  -")[0]
            assert len(line.split()) > 3, f"{option} says nothing"


@pytest.mark.parametrize("command", SECTIONS)
def test_every_option_is_in_one_section(cli, command):
    text = help_of(cli, command)
    titles = re.findall(r"^([A-Z]\w+):$", text, re.MULTILINE)
    assert titles == ["Arguments", *SECTIONS[command], "Run"]
    group = typer.main.get_command(app)
    names = [next(name for name in item.opts if name[:2] == "--") for item in group.commands[command].params[1:]
             if item.param_type_name == "option"]  # fmt: skip
    listed = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE)
    assert sorted(listed) == sorted([*names, "--help"])


def test_help_names_every_command(cli):
    text = help_of(cli)
    assert all(re.search(rf"^  {command} +[A-Z]", text, re.MULTILINE) for command in COMMANDS)
    code, out, err = cli()
    assert text in (out + err)
    assert code in (0, 2)


def examples() -> list[str]:
    group = typer.main.get_command(app)
    helps = [command.help or "" for command in group.commands.values()]
    return [line.strip() for text in helps for line in text.splitlines() if line.strip().startswith("stcli ")]


@pytest.mark.parametrize("example", examples())
def test_examples_in_help_parse(example):
    group = typer.main.get_command(app)
    name, *words = shlex.split(example)[1:]
    context = group.commands[name].make_context(name, words)  # raises what a mistyped option would
    assert context.params["output" if "output" in context.params else "verbose"] is not None


def test_there_are_examples():
    assert len(examples()) >= 2 * len(COMMANDS) - 1
    assert {shlex.split(example)[1] for example in examples()} == set(COMMANDS)


def test_version(cli):
    assert cli("--version") == (0, f"stcli {stcli.__version__}\n", "")
