"""The command line. Heavy libraries are imported by the commands that need them: `--help`, `plan`, `verify` do not."""

import errno
import io
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from flows import environment
from tasks.artifacts import NO_SPACE, write_atomic
from tasks.errors import EXIT_CODES, DiskFullError, InterruptedRun, MaskmillError, UsageError
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
            traceback.print_exc()
        say(f"Error: {error}")
        raise typer.Exit(error.exit_code) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):  # wrong options: Typer explains them itself
            raise
        if debugging:
            traceback.print_exc()
        if isinstance(error, OSError) and (told := _said_by_the_system(error)):
            say(f"Error: {told}")
            raise typer.Exit(told.exit_code) from None
        say(f"Internal error: {type(error).__name__}: {error}. Run again with --debug for the traceback.")
        raise typer.Exit(MaskmillError.exit_code) from None


def _said_by_the_system(error: OSError) -> MaskmillError | None:
    """A full disk, or a folder that may not be written to, as one of our errors; None for anything else."""
    if error.errno in NO_SPACE:
        return DiskFullError(f"No space left for {error.filename or 'what is being made'}; free some and run again.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        why = os.strerror(error.errno)
        return UsageError(f"{error.filename}: {why}; set MASKMILL_HOME to a folder that can be written to.")
    return None


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with explained():
            return super().invoke(ctx)


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt  # a Ctrl-C of another program


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


@app.command()
def run(
    recipe: RecipeName,
    source: Source = [],  # noqa: B006  (Typer copies it)
    set_: Setting = [],  # noqa: B006
    from_: From = None,
    wait: Wait = 600.0,
    debug: Debug = False,
) -> None:
    """Run the flow; what is finished already is reused.

    Example: maskmill run quickstart --source ~/texts --set pretrain.tokens=5000000
    """
    from flows import plan, recipes, ui

    home = _home()
    mill = recipes.load(recipe, source, set_)
    plan.plan(mill, _store(home, from_))  # a source that is missing shall not wait for a server
    environment.check_mlflow()
    with ui.prefect_api(home):
        from flows import mlm, summary

        if not debugging:  # errors reach the terminal as one sentence; the Prefect UI has the tracebacks
            for name in ("prefect.flow_runs", "prefect.task_runs"):
                logging.getLogger(name).propagate = False
        try:
            result = mlm.maskmill(recipe, list(source), list(set_), cast(Any, from_), wait)
        finally:
            mlm.deliver()
    summary.show(result)


@app.command()
def plan(
    recipe: RecipeName,
    source: Source = [],  # noqa: B006
    set_: Setting = [],  # noqa: B006
    from_: From = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what would run, what would be reused, and why. Runs nothing.

    Example: maskmill plan quickstart --set shards.rate=0.15
    """
    from flows import plan, recipes

    home = _home()
    mill = recipes.load(recipe, source, set_)
    verdicts = plan.plan(mill, _store(home, from_), home)
    _json(plan.page(verdicts)) if as_json else plan.show(mill, verdicts)


@app.command()
def profile(
    recipe: RecipeName,
    source: Source = [],  # noqa: B006
    set_: Setting = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="Training steps to measure.")] = 20,
    wait: Wait = 600.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take a few training steps; show where their time goes and which setting to change first. Keeps no weights.

    Makes corpus, vocabulary and shards where they are not there yet; the next run reuses them.

    Example: maskmill profile quickstart --set pretrain.micro_tokens=2048
    """
    from flows import recipes, speed

    home = _home()
    mill = recipes.load(recipe, source, set_)
    environment.reach_hub(mill.reaches_hub)
    found = speed.profile(mill, _store(home, wait=wait), steps)
    _json(found) if as_json else speed.show(found)


@app.command()
def join(
    job: Annotated[Path, typer.Argument(help="The job.json that the first machine printed, on a shared disk.")],
    debug: Debug = False,
) -> None:
    """Take part in a training that another machine started (pretrain.nodes); ends with it.

    Example: maskmill join /shared/store/pretrain/.1f2e.partial/.scratch/job.json
    """
    from tasks import launch

    launch.join(job)


@app.command()
def verify(
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="Only this stage's artifacts.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hash every artifact again and regenerate every stored mask. Exit status 65 if anything is damaged.

    Example: maskmill verify shards
    """
    from flows import verify

    report = verify.verify(_store(_home(), stage), stage)
    _json(report.page()) if as_json else verify.show(report)
    if report.findings:
        raise typer.Exit(65)


@app.command()
def predict(
    text: Annotated[str, typer.Argument(help="A text with one or more [MASK].")],
    model: Annotated[
        str | None, typer.Option(metavar="NAME[@ALIAS|/VERSION]", help="Default: the champion of the only model.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Predictions for each [MASK].")] = 5,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fill the masks of a text with a registered model.

    Example: maskmill predict "Returns a [MASK] of the array." --top 3
    """
    from flows import summary
    from tasks import versions

    environment.settle(_home())
    environment.reach_hub(False)
    answers = versions.predict(text, model, top)
    _json(answers) if as_json else summary.show_predictions(text, answers)


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="A folder in transformers format, NAME[@ALIAS|/VERSION], a hub name."),
    ],
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="Whose evaluation sets and corpus: a recipe's name, or a YAML file.")
    ] = "quickstart",
    source: Source = [],  # noqa: B006
    set_: Setting = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="The report; default: below the home.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask models the evaluation sets of a recipe, and show their scores side by side.

    Any masked language models: their tokenizers may differ. What is finished is kept, so a comparison that was stopped
    goes on where it was.

    Example: maskmill compare quickstart bert-base-uncased --recipe my-recipe.yaml
    """
    from flows import compare, recipes
    from tasks import report

    home = _home()
    words = ["maskmill", "compare", *models, "--recipe", recipe]
    words += [word for one in source for word in ("--source", one)] + [word for one in set_ for word in ("--set", one)]
    mill = recipes.load(recipe, source, set_)
    environment.reach_hub(any(not Path(one).expanduser().is_dir() for one in models))
    found = compare.compare(models, mill, home, _store(home), shlex.join(words))
    file = (out or compare.place(found, home)).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, report.page(found).encode())
    _json(report.as_json(found) | {"html": str(file)}) if as_json else compare.show(found, file)


@app.command()
def runs(
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show recent runs: state, failed stage, rerun command.

    Example: maskmill runs --limit 5
    """
    from flows import ledger

    entries = ledger.read(_home(), limit)
    _json([ledger.page(entry) for entry in entries]) if as_json else ledger.show(entries)


@app.command()
def ui(
    prefect_port: Annotated[int, typer.Option(help="Wanted port; another free one where it is taken.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Wanted port; another free one where it is taken.")] = 5000,
    debug: Debug = False,
) -> None:
    """Start both web UIs on 127.0.0.1, print their addresses.

    Example: maskmill ui
    """
    from flows import ui

    home = _home()
    ui.serve(home, prefect_port, mlflow_port)


def _home() -> Path:
    """The home folder; also settles the environment, which must come before any heavy import."""
    home = environment.home()
    environment.settle(home)
    return home


def _store(home: Path, first: str | None = None, wait: float = 600.0) -> Any:
    from flows.plan import INPUTS, forced_stages
    from tasks.artifacts import Store

    if first and first not in INPUTS:
        raise UsageError(f"There is no stage {first!r}; the stages are {', '.join(INPUTS)}.")
    return Store(environment.store_root(home), wait, forced_stages(first))


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """The console script."""
    for number in (signal.SIGTERM, signal.SIGUSR1):  # a batch system says with either that the time is over
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal in LANG=C must not stop a run at its first arrow
            stream.reconfigure(errors="replace")
    app(prog_name="maskmill")


if __name__ == "__main__":
    main()
