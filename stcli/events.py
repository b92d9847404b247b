"""What happens during a run, told to the logger `stcli`: events, each with a stage and fields; and timed stages."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOGGER = logging.getLogger("stcli")
LOGGER.addHandler(logging.NullHandler())  # else Python prints warnings of a logger that nobody listens to


def tell(event: str, *, stage: str | None = None, level: int = logging.INFO, **fields: Any) -> None:
    """Tell one event; `--log-json` makes a line of it, and a handler of the caller finds `stage` and `fields` in it."""
    if LOGGER.isEnabledFor(level):
        words = [event, *([stage] if stage else []), *(f"{name}={value}" for name, value in fields.items())]
        LOGGER.log(level, "%s", " ".join(words), extra={"event": event, "stage": stage, "fields": fields})


def warn(kind: str, *, stage: str | None = None, **fields: Any) -> None:
    """Tell an event of level warning."""
    tell(kind, stage=stage, level=logging.WARNING, **fields)


class Stages:
    """The stages of a run, one after another; each tells when it starts and ends.

    Attributes:
        seconds: of each stage that has ended; those of equal name are added.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """One stage; it does not end if an error leaves it."""
        tell("stage_start", stage=name)
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        tell("stage_end", stage=name, seconds=round(seconds, 3))

    def rounded(self) -> dict[str, float]:
        """The seconds, to a millisecond."""
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}
