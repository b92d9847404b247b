"""`--log-json`: what the logger `stcli` is told, one JSON object a line, to a file or to stderr.

Each line has `time` (UTC), `level`, `event`, `stage` (or null) and `fields`, an object that differs by event.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys

from stcli.errors import InputError
from stcli.events import LOGGER

STDERR = "-"


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; one that is not ours has its text as the event."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.getMessage()),
            "stage": getattr(record, "stage", None),
            "fields": getattr(record, "fields", {}),
        }
        return json.dumps(line, ensure_ascii=False, default=str)


def open_log(target: str) -> None:
    """Write all events from now on to the end of a file, or to stderr for `-`.

    Raises:
        InputError: the file cannot be written.
    """
    close_log()
    if target == STDERR:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            handler = logging.FileHandler(target, encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"--log-json {target}: cannot be written ({error.strerror}); expected a file in a "
                "folder that is there, or - for stderr"
            ) from error
    handler.setFormatter(JsonLines())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def close_log() -> None:
    """End the log of this command, if it has one."""
    for handler in _handlers():
        LOGGER.removeHandler(handler)
        handler.close()
    LOGGER.setLevel(logging.NOTSET)
    LOGGER.propagate = True


def is_on_stderr() -> bool:
    """Stderr holds lines of JSON, and should hold nothing else."""
    return any(not isinstance(handler, logging.FileHandler) for handler in _handlers())


def _handlers() -> list[logging.Handler]:
    return [handler for handler in LOGGER.handlers if isinstance(handler.formatter, JsonLines)]
