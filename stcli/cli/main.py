"""The command line: parses, calls the pipeline, prints, and sets the exit code."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from stcli import __version__
from stcli.cli.bench import bench
from stcli.cli.build import build_index, pack_model
from stcli.cli.compare import compare
from stcli.cli.json_log import close_log, is_on_stderr
from stcli.cli.look import explain, inspect
from stcli.cli.retrieve import retrieve
from stcli.cli.sections import SectionedCommand
from stcli.cli.update import update
from stcli.errors import StcliError
from stcli.events import tell

HELP = """Filtered embedding retrieval over Parquet: each query with its own filter, on the CPU or a GPU.

\b
  stcli build-index items.parquet     -o items.index         Parquet  -> index directory
  stcli pack-model  items.index       -o model.safetensors   index    -> one model artifact
  stcli update      model.safetensors --upsert FILE --delete FILE -o model2/
  stcli retrieve    model.safetensors queries.parquet -o results
  stcli bench       model.safetensors queries.parquet -o report
  stcli compare     report-a report-b                        or two results directories
  stcli inspect     ANY-OF-THESE
  stcli explain     model.safetensors --filter TEXT, or --queries FILE --query ID --item ID
"""

UsageError: type[typer.BadParameter] = typer.BadParameter.mro()[1]
"""Any error in the command line itself; typer brings its own copy of click, or depends on it, by version."""

app = typer.Typer(
    help=HELP,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    suggest_commands=True,
)
for command in (build_index, pack_model, update, retrieve, bench, compare, inspect, explain):
    app.command(cls=SectionedCommand, no_args_is_help=True)(command)


def _version(value: bool) -> None:
    if value:
        print(f"stcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class Terminated(SystemExit):
    """SIGTERM: stop cleanly, with the exit code that the shell gives it."""


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated(TERMINATED)


def main() -> NoReturn:
    """Run a command and leave with its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; 0 done, 1 failed, 2 bad options or inputs, 3 threshold missed, 130 interrupted.

    Raises:
        Terminated: SIGTERM came.
    """
    try:
        return _run(arguments)
    except Terminated:
        tell("stopped", level=logging.WARNING, signal="SIGTERM", exit_code=TERMINATED)
        raise
    finally:
        close_log()


def _run(arguments: list[str]) -> int:
    verbose = "-v" in arguments or "--verbose" in arguments
    try:
        result: Any = app(arguments, standalone_mode=False, prog_name="stcli")
    except StcliError as error:
        return _fail(str(error), error.exit_code, verbose)
    except (typer.Abort, KeyboardInterrupt):
        result = INTERRUPTED
    except UsageError as error:
        error.show()
        return 2
    except MemoryError:
        return _fail("out of memory; lower --batch-size or --memory-limit", 1, verbose)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return _fail(f"{error.filename or 'output'}: {error.strerror}", 1, verbose)
    if result == INTERRUPTED:  # typer returns this number after Ctrl-C
        kept = (
            "what is finished is kept, --resume goes on with it" if "retrieve" in arguments else "nothing was written"
        )
        return _fail(f"interrupted; {kept}", INTERRUPTED, False)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int, trace: bool) -> int:
    if trace:
        traceback.print_exc()
    tell("error", level=logging.ERROR, message=message, exit_code=code)
    if not is_on_stderr():
        print(f"stcli: error: {message}", file=sys.stderr)
    return code
