"""The errors that `stcli` raises on purpose, each with the exit code that the command line gives it.

A message is one sentence: where, what was found, what was expected, what to do. Everything that is
not a `StcliError` is a bug and keeps its stack trace.
"""

from __future__ import annotations

from typing import Any


class StcliError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(StcliError):
    """An option, a table or a value that the caller gave cannot be used; nothing was written."""

    exit_code = 2


class TextError(InputError):
    """A text in one of our languages that does not parse or names something unknown.

    Attributes:
        text: the text as given.
        position: 0-based character at which the problem starts.
    """

    def __init__(self, message: str, text: str = "", position: int = 0) -> None:
        self.text, self.position = text, position
        super().__init__(f"{message}\n{caret(text, position)}" if text else message)


class FilterError(TextError):
    """A filter that cannot be used."""


class FormulaError(TextError):
    """A formula of a value model that cannot be used."""


class FormatError(InputError):
    """A file of ours is truncated, foreign, edited or of another format version."""


class TensorError(InputError):
    """A tensor has another dtype, shape or device than the contract states."""


class DeviceError(InputError):
    """The device or backend that was asked for cannot run here."""


class ExistsError(InputError):
    """The output is already there and `--overwrite` was not given."""


class RunError(StcliError):
    """The work itself failed: disk full, memory gone, a part that cannot be written."""


class ThresholdError(StcliError):
    """The run finished, but a threshold that the caller asked for was missed.

    Attributes:
        summary: of the run, if the command prints one all the same.
    """

    exit_code = 3

    def __init__(self, message: str, summary: dict[str, Any] | None = None) -> None:
        self.summary = summary or {}
        super().__init__(message)


def caret(text: str, position: int, width: int = 72) -> str:
    """Two lines, the text around `position` and a caret under it; long texts are cut to `width`."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    start = max(0, min(position - width // 2, len(text) - width))
    window = text[start : start + width]
    left, right = ("..." if start else ""), ("..." if start + width < len(text) else "")
    return f"  {left}{window}{right}\n  {' ' * (len(left) + position - start)}^"


def nearest(name: str, known: list[str], limit: int = 12) -> str:
    """How an error lists what there is: the nearest name first, then all of them up to `limit`."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    shown = ", ".join(known[:limit]) + (f", ... ({len(known)} in all)" if len(known) > limit else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"there are: {shown or 'none'}"
