"""The commands about schedules and reruns: apply them, work off what is due, run what failed again."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows import environment, terminal
from tasks.errors import UsageError
from tasks.progress import say


def deploy(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Default: deployments/prefect.yaml.")] = None,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Apply the schedules of deployments/prefect.yaml to the Prefect server. Asks nothing; twice changes nothing.

    Example: maskmill deploy
    """
    from flows import deployments

    home = terminal.home()
    applied = deployments.deploy(home, (file or deployments.FILE).absolute())
    if as_json:
        terminal.as_json(asdict(applied))
        return
    for name in applied.deployments:
        print(f"deployed      {name}")
    for name in applied.automations:
        print(f"automation    {name}")
    print("Runs that are due need a worker on a machine with this checkout: maskmill worker")


def worker(
    pool: Annotated[str, typer.Option(help="The work pool to take runs from.")] = "maskmill",
    debug: terminal.Debug = False,
) -> None:
    """Run what is due, until Ctrl-C. One on each machine that shares the home folder.

    Once a minute it does what `maskmill doctor --rerun` does. Stopped, it lets a training finish its step and write a
    checkpoint; a second Ctrl-C ends it at once.

    Example: maskmill worker
    """
    from flows import doctor, ui, worker

    home, said = terminal.home(), set[doctor.Finding]()
    ui.reach(home)

    def look() -> None:
        try:
            findings = doctor.examine(home, again=True)
        except Exception as error:  # whatever Prefect's client raises where the server is away; the worker waits for it
            say(f"worker: the Prefect server does not answer as it should ({type(error).__name__}); asked again later")
            return
        for found in findings:
            if found.mended or found not in said:
                print(f"{found.name}: {found.what}", flush=True)
            said.add(found)

    raise typer.Exit(worker.work(pool, look))


def rerun(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Prefect's id of a flow run, or how it begins.")],
    from_: terminal.From = None,
    debug: terminal.Debug = False,
) -> None:
    """Run a flow run again: only what is missing or damaged is made, as by the Retry button or the same command.

    One of a deployment goes back to the queue, for a worker; another runs in this terminal.

    Example: maskmill rerun 0d1f2a3b --from evaluate
    """
    from flows import doctor, ui
    from flows.parts import INPUTS

    home = terminal.home()
    if from_ and from_ not in INPUTS:
        raise UsageError(f"There is no stage {from_!r}; the stages are {', '.join(INPUTS)}.")
    done = doctor.rerun(home, run, from_, ui.reachable(home))
    if isinstance(done, str):
        print(done)
        return
    sys.stdout.flush()
    os.chdir(environment.CHECKOUT)
    os.execv(sys.executable, [sys.executable, "-m", "flows.cli", *done])


def doctor(
    again: Annotated[bool, typer.Option("--rerun", help="Crashed runs of deployments go back to the queue.")] = False,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Set right what the Prefect server believes of runs whose process died, or was started twice.

    Example: maskmill doctor --rerun
    """
    from flows import doctor, ui

    home = terminal.home()
    ui.reach(home)
    findings = doctor.examine(home, again)
    if as_json:
        terminal.as_json(doctor.page(findings))
        return
    for found in findings:
        print(f"{'mended' if found.mended else 'look':<7} {found.name}: {found.what}")
    if not findings:
        print("Every run is as the Prefect server has it.")
