"""The command line. Heavy libraries are imported by the commands that need them: `--help`, `plan`, `verify` do not."""

import io
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flows import (
    environment,
    model_commands,
    promotion_commands,
    schedule_commands,
    serve_commands,
    store_commands,
    terminal,
)
from flows.access import HOST
from tasks.errors import MaskmillError, UnreachableError, end_without_threads, is_out_of_memory
from tasks.progress import say


@terminal.app.command()
def run(
    recipe: terminal.RecipeName,
    source: terminal.Source = [],  # noqa: B006  (Typer copies it)
    set_: terminal.Setting = [],  # noqa: B006
    from_: terminal.From = None,
    wait: terminal.Wait = 600.0,
    debug: terminal.Debug = False,
) -> None:
    """Run the flow; what is finished already is reused.

    Example: maskmill run quickstart --source ~/texts --set pretrain.tokens=5000000
    """
    _run("maskmill", recipe, source, set_, from_, wait, force_from=from_ or "nothing")


@terminal.app.command()
def data(
    recipe: terminal.RecipeName,
    source: terminal.Source = [],  # noqa: B006
    set_: terminal.Setting = [],  # noqa: B006
    from_: terminal.From = None,
    wait: terminal.Wait = 600.0,
    debug: terminal.Debug = False,
) -> None:
    """Make corpus, vocabulary and shards only, so that a training finds them.

    Example: maskmill data quickstart --source ~/texts
    """
    _run("data", recipe, source, set_, from_, wait, force_from=from_ or "nothing")


@terminal.app.command()
def examine(
    recipe: terminal.RecipeName,
    source: terminal.Source = [],  # noqa: B006
    set_: terminal.Setting = [],  # noqa: B006
    wait: terminal.Wait = 600.0,
    debug: terminal.Debug = False,
) -> None:
    """Score the champion on what the sources hold now.

    Example: maskmill examine quickstart --source ~/new-texts
    """
    _run("examine", recipe, source, set_, None, wait)


@terminal.app.command()
def sweep(
    recipe: terminal.RecipeName,
    source: terminal.Source = [],  # noqa: B006
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY.SUB=VALUE,VALUE", help="Settings; those with commas are varied.")
    ] = [],  # noqa: B006
    wait: terminal.Wait = 600.0,
    debug: terminal.Debug = False,
) -> None:
    """Run every combination of settings; what they have in common is made once. Ends with a table.

    Example: maskmill sweep quickstart --set pretrain.learning_rate=0.003,0.006 --set shards.rate=15%,30%
    """
    from flows import recipes, ui

    home = terminal.home()
    recipes.load(recipe, source)
    environment.check_mlflow()
    with ui.prefect_api(home):
        from flows import mlm, sweep

        _quiet()
        try:
            found = sweep.sweep(recipe, recipes.to_be_written(source), recipes.to_be_written(set_), wait=wait)
        except Exception as error:
            if _is_prefects(error):
                raise _away(error) from error
            raise
        finally:
            mlm.deliver()
    sweep.show(found)


def _run(
    flow: str,
    recipe: str,
    source: list[str],
    set_: list[str],
    from_: str | None,
    wait: float,
    **others: Any,
) -> None:
    """One of the flows of flows/mlm.py, by its name."""
    from flows import plan, recipes, ui

    home = terminal.home()
    mill = recipes.load(recipe, source, set_)
    store = terminal.store(home, from_, remote=mill.remote)
    plan.plan(mill, store)  # a source that is missing shall not wait for a server
    environment.check_mlflow()
    with ui.prefect_api(home):
        from flows import mlm, summary

        _quiet()
        try:
            result = getattr(mlm, flow)(
                recipe, recipes.to_be_written(source), recipes.to_be_written(set_), wait=wait, **others
            )
        except Exception as error:
            _refuse_silence(error, home)
            raise
        finally:
            mlm.deliver()
    summary.show(result)


def _refuse_silence(error: Exception, home: Path) -> None:
    """A Prefect server that went away during a run. The artifacts need none: is the run complete all the same?

    Raises UnreachableError, or Exit where it is.
    """
    if not _is_prefects(error):
        return
    from flows import ledger

    last = next(iter(ledger.read(home, 1)), None)
    if last and last.id.endswith(f"-{os.getpid()}") and last.state == "completed":
        say("The run is complete, but its Prefect server is away; `maskmill doctor` tells it so later.")
        raise typer.Exit
    raise _away(error) from error


def _away(error: Exception) -> UnreachableError:
    return UnreachableError(
        f"The Prefect server is away, or something else answers at its address ({type(error).__name__}); start it and "
        "run again: what is finished is kept."
    )


def _is_prefects(error: Exception) -> bool:
    """Did Prefect's client raise it? A gateway's page instead of JSON is a ValueError of anybody's by its type, and an
    error of httpx may be one of a stage, which reaches servers of its own.
    """
    if isinstance(error, MaskmillError) or is_out_of_memory(error):
        return False
    # Whoever was called last of these.
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    asked = [name for name in names if name.startswith(("prefect.client", "tasks.", "flows."))]
    if not asked or not asked[-1].startswith("prefect.client"):
        return False
    # What a stage raises comes through State.result, which is in there too; from Ray, without the stage's own frames.
    return not asked[-1].startswith("prefect.client.schemas") or type(error).__module__.startswith("prefect")


def _quiet() -> None:
    """Errors reach the terminal as one sentence; the Prefect UI has the tracebacks.

    What Prefect's own threads say of a server that is away (each event in full) is said by us, once.
    """
    if not terminal.debugging:
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).propagate = False
        for name in ("prefect.events.clients", "prefect._internal.concurrency", "EventsWorker", "APILogWorker"):
            logging.getLogger(name).addFilter(lambda record: False)  # Prefect sets levels anew when a run begins
        logging.raiseExceptions = False  # "--- Error logging to API ---"


@terminal.app.command()
def plan(
    recipe: terminal.RecipeName,
    source: terminal.Source = [],  # noqa: B006
    set_: terminal.Setting = [],  # noqa: B006
    from_: terminal.From = None,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Show what would run, what would be reused, and why. Runs nothing.

    Example: maskmill plan quickstart --set shards.rate=0.15
    """
    from flows import plan, recipes

    home = terminal.home()
    mill = recipes.load(recipe, source, set_)
    verdicts = plan.plan(mill, terminal.store(home, from_, remote=mill.remote), home)
    terminal.as_json(plan.page(verdicts)) if as_json else plan.show(mill, verdicts)


@terminal.app.command()
def profile(
    recipe: terminal.RecipeName,
    source: terminal.Source = [],  # noqa: B006
    set_: terminal.Setting = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="Training steps to measure.")] = 20,
    wait: terminal.Wait = 600.0,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Take a few training steps; show where their time goes and which setting to change first. Keeps no weights.

    Makes corpus, vocabulary and shards where they are not there yet; the next run reuses them.

    Example: maskmill profile quickstart --set pretrain.micro_tokens=2048
    """
    from flows import recipes, speed

    home = terminal.home()
    mill = recipes.load(recipe, source, set_)
    environment.reach_hub(mill.reaches_hub)
    found = speed.profile(mill, terminal.store(home, wait=wait, remote=mill.remote), steps)
    terminal.as_json(found) if as_json else speed.show(found)


@terminal.app.command()
def join(
    job: Annotated[Path, typer.Argument(help="The job.json that the first machine printed, on a shared disk.")],
    debug: terminal.Debug = False,
) -> None:
    """Take part in a training that another machine started (pretrain.nodes); ends with it.

    Example: maskmill join /shared/store/pretrain/.1f2e.partial/.scratch/job.json
    """
    from tasks import launch

    launch.join(job)


@terminal.app.command()
def verify(
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="Only this stage's artifacts.")] = None,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Hash every artifact again and regenerate every stored mask. Exit status 65 if anything is damaged.

    Example: maskmill verify shards
    """
    from flows import verify

    report = verify.verify(terminal.store(terminal.home(), stage), stage)
    terminal.as_json(report.page()) if as_json else verify.show(report)
    if report.findings:
        raise typer.Exit(65)


@terminal.app.command()
def runs(
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Show recent runs: state, failed stage, rerun command.

    Example: maskmill runs --limit 5
    """
    from flows import ledger

    entries = ledger.read(terminal.home(), limit)
    terminal.as_json([ledger.page(entry) for entry in entries]) if as_json else ledger.show(entries)


@terminal.app.command()
def ui(
    prefect_port: Annotated[int, typer.Option(help="Wanted port; another free one where it is taken.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Wanted port; another free one where it is taken.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's need passwords.")] = HOST,
    allowed_hosts: Annotated[
        str, typer.Option(metavar="NAME,…", help="Names by which browsers call it; default: this machine's.")
    ] = "",
    debug: terminal.Debug = False,
) -> None:
    """Start both web UIs on 127.0.0.1, print their addresses.

    With PREFECT_SERVER_API_AUTH_STRING=user:password and MLFLOW_AUTH_ADMIN_PASSWORD set, both ask for them, and --host
    may be one that others reach.

    Example: maskmill ui --host 0.0.0.0 --allowed-hosts mill.example.org
    """
    from flows import access, ui

    home = terminal.home()
    ui.serve(home, prefect_port, mlflow_port, access.Access(host, access.names(host, allowed_hosts)))


for command in (
    schedule_commands.rerun,
    schedule_commands.doctor,
    schedule_commands.deploy,
    schedule_commands.worker,
    model_commands.predict,
    serve_commands.serve,
    model_commands.compare,
    promotion_commands.promote,
    promotion_commands.rollback,
    store_commands.lineage,
    store_commands.gc,
):
    terminal.app.command()(command)


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt  # a Ctrl-C of another program


def _stand_in() -> None:
    """A stream that is closed becomes one that leads nowhere, for child processes, too.

    Else the next file that is opened gets its number, and what libraries print is written into that file: a database.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, so this one
            stream = open(number, "w" if number else "r", closefd=False, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


def main() -> None:
    """The console script."""
    _stand_in()
    end_without_threads()
    requests = (signal.SIGTERM, signal.SIGUSR1)  # a batch system says with either that the time is over
    for number in requests:
        signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal in LANG=C must not stop a run at its first arrow
            stream.reconfigure(errors="replace")
    try:
        terminal.app(prog_name="maskmill")
    finally:  # nothing is left to stop, and Python's own end, which has no handlers any more, would die of a signal
        for number in (*requests, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
