"""The commands about schedules: apply them, work off what is due."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows import terminal


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

    Example: maskmill worker
    """
    from flows import deployments

    raise typer.Exit(deployments.work(terminal.home(), pool))
