"""What every command shares: how errors are said, common options, where things lie. Imports nothing heavy."""

import errno
import json
import os
import select
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows import environment
from tasks.errors import (
    EXIT_CODES,
    InterruptedRun,
    MaskmillError,
    MemoryExhausted,
    UsageError,
    is_out_of_memory,
    of_disk,
    without_secrets,
)
from tasks.progress import say

AGAIN = "Stopped. Run the same command again: it goes on from where it was."
debugging = False


@contextmanager
def explained() -> Iterator[None]:
    """Errors become one sentence and their exit status; a traceback only with --debug."""
    try:
        yield
    except (KeyboardInterrupt, InterruptedRun) as error:
        say(f"{error}" if isinstance(error, InterruptedRun) else AGAIN)
        raise typer.Exit(InterruptedRun.exit_code) from None
    except MaskmillError as error:
        if debugging:
            _show_traceback()
        say(f"Error: {error}")
        raise typer.Exit(error.exit_code) from None
    except (typer.Exit, typer.Abort):
        raise
    except SystemExit as error:  # rich's answer to a broken pipe
        if isinstance(error.__context__, BrokenPipeError):
            raise typer.Exit from None
        raise
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):  # wrong options: Typer explains them itself
            raise
        if _nobody_reads(error):
            raise typer.Exit from None
        if debugging:
            _show_traceback()
        if is_out_of_memory(error):
            say("Error: Out of memory, or of threads (ulimit -u); run again when more is free, or on a larger machine.")
            raise typer.Exit(MemoryExhausted.exit_code) from None
        if isinstance(error, OSError) and (told := _said_by_the_system(error)):
            say(f"Error: {told}")
            raise typer.Exit(told.exit_code) from None
        what = without_secrets(f"{type(error).__name__}: {error}")
        say(f"Internal error: {what}. Run again with --debug for the traceback.")
        raise typer.Exit(MaskmillError.exit_code) from None


def _nobody_reads(error: Exception) -> bool:
    """Is stdout a pipe whose reader has seen enough (`| head`)? What is left for it goes nowhere.

    So it does where stdout lies on a full disk: the interpreter would stumble over it at its very end.
    """
    closed = False
    if isinstance(error, BrokenPipeError):
        (looked := select.poll()).register(1, 0)  # an error of the pipe is told unasked
        closed = bool(looked.poll(0))
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return closed


def _show_traceback() -> None:
    """Of the error that is being handled. Libraries put addresses with their passwords into what they raise."""
    print(without_secrets(traceback.format_exc()), file=sys.stderr)


def _said_by_the_system(error: OSError) -> MaskmillError | None:
    """A full disk, or a folder that may not be written to, as one of our errors; None for anything else."""
    if told := of_disk(error, "what is made or printed"):
        return told
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):  # EEXIST: a file's name
        why = os.strerror(error.errno)
        return UsageError(f"{error.filename}: {why}; set MASKMILL_HOME to a folder that can be written to.")
    return None


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with explained():
            result = super().invoke(ctx)
            sys.stdout.flush()  # here it can be explained
            return result


EPILOG = "Exit status: " + " · ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."
app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="From a corpus to a registered masked language model.\n\nStart with: maskmill run quickstart",
)


def _version(value: bool) -> None:
    if value:
        print(f"maskmill {metadata.version('maskmill')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass  # its options are what it is for; the help text is the app's


def _debug(value: bool) -> bool:
    global debugging
    debugging = debugging or value
    return value


Debug = Annotated[bool, typer.Option("--debug", callback=_debug, help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A name in deployments/recipes/, or a YAML file.")]
Source = Annotated[
    list[str],
    typer.Option("--source", metavar="PATH", help="File, folder, glob, URL or hf:NAME in place of the recipe's."),
]
Setting = Annotated[
    list[str], typer.Option("--set", metavar="KEY.SUB=VALUE", help="Change a setting, as pretrain.steps=100.")
]
Wait = Annotated[float, typer.Option(help="Seconds to wait for another run that makes the same.")]
From = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Make this stage and what follows again.")]


def home() -> Path:
    """The home folder; also settles the environment, which must come before any heavy import."""
    folder = environment.home()
    environment.settle(folder)
    return folder


def store(folder: Path, first: str | None = None, wait: float = 600.0, remote: str | None = None) -> Any:
    """The store of a home. remote: a recipe's, or "" for that of the machine; None: what is here only."""
    from flows.parts import INPUTS
    from flows.plan import forced_stages
    from tasks import remote_store
    from tasks.artifacts import Store

    if first and first not in INPUTS:
        raise UsageError(f"There is no stage {first!r}; the stages are {', '.join(INPUTS)}.")
    shared = None if remote is None else remote_store.at(environment.remote(remote))
    return Store(environment.store_root(folder), wait, forced_stages(first), shared)


def as_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
