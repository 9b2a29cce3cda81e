"""deployments/prefect.yaml, checked and applied: work pool, deployments, training slot, automations.

Prefect does it; what is here is the order, and errors that name the place. Applying twice changes nothing.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flows import environment, notices, recipes, ui
from flows.recipe_file import read
from tasks.errors import MaskmillError, UsageError
from tasks.progress import say

FILE = environment.CHECKOUT / "deployments" / "prefect.yaml"
AUTOMATIONS = environment.CHECKOUT / "deployments" / "automations.yaml"
POOL = "maskmill"


@dataclass(frozen=True)
class Applied:
    """What the server has now."""

    server: str
    deployments: list[str]
    automations: list[str]


def deploy(home: Path, file: Path = FILE) -> Applied:
    """Applies a prefect.yaml from the checkout's root; work pools, the training slot and automations that are missing
    are made.

    Raises UsageError for a file that is wrong, or where no server answers; MaskmillError with Prefect's words where it
    refuses.
    """
    listed = check(file)
    server = ui.reach(home)
    for pool in sorted({(one.get("work_pool") or {}).get("name", POOL) for one in listed}):
        _pool(pool)
    _slot()
    say(f"deploying {len(listed)} deployments of {file} to {server}")
    _prefect("deploy", "--all", "--prefect-file", str(file))
    return Applied(server, [one["name"] for one in listed], _automations())


def check(file: Path) -> list[dict[str, Any]]:
    """The deployments of a prefect.yaml. Prefect itself is vague about what is wrong in one.

    Raises UsageError naming the file, the deployment and what is wrong: a key that is missing, an entry point that is
    not there, a recipe that does not load with these parameters.
    """
    if not file.is_file():
        raise UsageError(f"There is no {file}.")
    listed = read(file).get("deployments")
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise UsageError(f"{file}: `deployments` must be a list of deployments.")
    for number, one in enumerate(listed, 1):
        place = f"{file}: deployment {one.get('name') or number}"
        for key in ("name", "entrypoint"):
            if not isinstance(one.get(key), str):
                raise UsageError(f"{place}: `{key}` is missing.")
        script, _, flow = one["entrypoint"].partition(":")
        if not os.path.isfile(environment.CHECKOUT / script) or not flow:
            raise UsageError(f"{place}: entrypoint {one['entrypoint']} is no FILE:FLOW below {environment.CHECKOUT}.")
        if not isinstance(_group(place, one, "work_pool").get("name", POOL), str):
            raise UsageError(f"{place}: the name of its `work_pool` is no text.")
        parameters = _group(place, one, "parameters")
        _check_parameters(place, parameters)
        schedules = one.get("schedules") or []
        if not isinstance(schedules, list) or not all(isinstance(schedule, dict) for schedule in schedules):
            raise UsageError(f"{place}: `schedules` must be a list of schedules.")
        for schedule in schedules:
            _check_parameters(place, parameters | _group(place, schedule, "parameters"))
    return listed


def _group(place: str, of: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The settings below a key; {} where there are none."""
    found = of.get(key) or {}
    if not isinstance(found, dict):
        raise UsageError(f"{place}: `{key}` must be a group of settings.")
    return found


def _check_parameters(place: str, parameters: Mapping[str, Any]) -> None:
    if "recipe" not in parameters:
        return
    recipe, lists = parameters["recipe"], [parameters.get(name) or [] for name in ("source", "set")]
    listed = all(isinstance(some, list) for some in lists)
    if not listed or not all(isinstance(text, str) for text in (recipe, *lists[0], *lists[1])):
        raise UsageError(f"{place}: `recipe` must be a text, `source` and `set` lists of texts.")
    try:
        recipes.load(recipe, *lists)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None


def _pool(name: str) -> None:
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            _prefect("work-pool", "create", name, "--type", "process")
            say(f"made the work pool {name} (its workers start processes on their machine)")


def _slot() -> None:
    from prefect import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectNotFound

    from flows.slots import TRAINING

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(TRAINING)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=TRAINING, limit=1))
            say(f"made the concurrency limit {TRAINING}: one training at a time")


def _automations() -> list[str]:
    """Those of automations.yaml: made, or brought up to date; without a webhook none that calls one. Their names."""
    from prefect.automations import Automation
    from prefect.events.schemas.automations import AutomationCore

    names, block = [], notices.webhook()
    for wanted in read(AUTOMATIONS)["automations"]:
        calls = [action for action in wanted["actions"] if "block_document_id" in action]
        for action in calls:
            action["block_document_id"] = block
        if calls and block is None:
            say(f"{wanted['name']} is left out: set {notices.VARIABLE} to the address that is to hear of it")
            continue
        core = AutomationCore.model_validate(wanted)
        names.append(core.name)
        try:
            known = cast(Automation, Automation.read(name=core.name))  # a coroutine only where there is an event loop
        except ValueError:
            Automation(**core.model_dump()).create()
            continue
        if known.model_dump(include=set(wanted)) != core.model_dump(include=set(wanted)):
            Automation(id=known.id, **core.model_dump()).update()
    return names


def _prefect(*words: str) -> None:
    """A command of Prefect, from the checkout's root: what it deploys is run there."""
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", *words]
    done = subprocess.run(command, cwd=environment.CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-500:]
        raise MaskmillError(f"prefect {words[0]} failed: {said}")
