"""What is said, written down and mirrored around each stage of a run; the stages themselves know none of it.

The artifacts are the truth and the ledger is the history. Prefect's cards and MLflow's runs mirror them: a server that
fails costs its picture of the run, never the run.
"""

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, cast
from uuid import UUID

from prefect import runtime
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from flows import environment, ledger, plan, summary
from flows.recipes import Recipe
from tasks import registry
from tasks.artifacts import Manifest, Store
from tasks.errors import InterruptedRun
from tasks.progress import say
from tasks.tracking import StageRun, Tracker

MIRROR_EVERY = 5.0
"""Seconds between two looks at a running training, at least."""


class Page:
    """What a stage came to; filled in by its task."""

    manifest: Manifest | None = None
    reused = False


def run_name() -> str:
    """How a flow run is called in the Prefect UI: the recipe and when it started."""
    started = runtime.flow_run.scheduled_start_time
    return f"{runtime.flow_run.parameters['recipe']} {started:%Y-%m-%d %H:%M:%S}"


class Chain:
    """One pass over the six stages."""

    def __init__(self, recipe: Recipe, store: Store, recorder: ledger.Recorder, tracker: Tracker) -> None:
        self.recipe, self.store, self.recorder, self.tracker = recipe, store, recorder, tracker
        self.manifests: dict[str, Manifest] = {}
        self.rival: Manifest | None = None
        self.stage_run: StageRun | None = None
        self._unsent: list[Mapping[str, Any]] = []
        self._sent = 0.0
        self._picture: UUID | None = None
        self._warned = False

    def champion(self) -> Manifest | None:
        """The weights that the new ones are compared with."""
        self.rival = registry.champion(self.recipe.register.name, self.store, self.manifests["pretrain"].digest)
        return self.rival

    def links(self) -> dict[str, Any]:
        """What the registry writes beside a version, for people."""
        return {"run": self.tracker.run_id or None, "command": self.recorder.entry.command}

    def finished(self) -> summary.Finished:
        """What the flow hands back."""
        version = registry.registered(self.manifests["register"])
        return summary.Finished(self.recipe.name, self.manifests, self.recorder.entry.stages, version)

    @contextmanager
    def stage(self, name: str) -> Iterator[Page]:
        """Around a stage: says why it runs, and afterwards what came of it."""
        digests = {stage: manifest.digest for stage, manifest in self.manifests.items()}
        rival = self.rival.digest if self.rival else None
        identity = plan.identity_of(name, self.recipe, digests, self.store, rival)
        verdict = plan.judge(identity, self.store)
        if verdict.action != "reuse":
            say(f"{name:<10}  {verdict.action}: {verdict.why}")
        self.recorder.stage(name, "running", why=verdict.why, key=identity.key)
        started, page = time.monotonic(), Page()
        with self.tracker.stage(name, asdict(getattr(self.recipe, name))) as self.stage_run:
            yield page
            self._send()
            assert page.manifest is not None
            inputs = {stage: self.manifests[stage] for stage in plan.INPUTS[name]}
            self.stage_run.record(page.manifest, page.reused, inputs)
        if name == "corpus":
            self.tracker.corpus(page.manifest)
        if name == "evaluate":
            self.tracker.metrics(page.manifest.facts["metrics"])
        self._done(page.manifest, "reused" if page.reused else "made", time.monotonic() - started)
        if "card.html" in page.manifest.files:
            say(f"{name:<10}  its card: {page.manifest.path('card.html')}")

    def _done(self, manifest: Manifest, state: str, seconds: float) -> None:
        name = manifest.stage
        self.manifests[name] = manifest
        self.recorder.stage(name, state, seconds=round(seconds, 3), digest=manifest.digest)
        say(f"{name:<10}  {state} in {seconds:.1f} s: {summary.what(manifest)}")
        entry = self.recorder.entry.stages[name]
        with self._mirrored():
            text = summary.card(manifest, entry, self.recipe.name)
            create_markdown_artifact(text, key=name, description=f"{name}: {state}")

    @contextmanager
    def _mirrored(self) -> Iterator[None]:
        """Whatever the Prefect server does in this block, the run goes on; the first trouble is said once."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                say(f"Prefect cannot show all of this run ({type(error).__name__}: {error}); the run goes on")
            self._warned = True

    def metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Takes new lines of the training's spool; every few seconds they go to MLflow, and a picture to Prefect."""
        self._unsent += records
        if time.monotonic() - self._sent >= MIRROR_EVERY:
            self._send()

    def _send(self) -> None:
        records, self._unsent, self._sent = self._unsent, [], time.monotonic()
        if not records:
            return
        assert self.stage_run is not None
        self.stage_run.ship(records)
        last, config = records[-1], self.recipe.pretrain
        done = last["step"] / config.steps if config.steps else last["metrics"].get("train/tokens", 0) / config.tokens
        said = f"step {last['step']:,}, loss {last['metrics']['train/loss']:.3f}"
        with self._mirrored():
            picture = self._picture or create_progress_artifact(0.0, key="pretrain-progress", description="training")
            self._picture = cast(UUID, picture)  # a coroutine only where there is an event loop
            update_progress_artifact(self._picture, min(100.0, 100 * done), description=said)


@contextmanager
def opened(recipe: Recipe, command: str, force_from: str | None, wait: float) -> Iterator[Chain]:
    """The chain of one flow run. Its entry in the ledger and its run in MLflow end the way it ends."""
    environment.check_mlflow()
    home = environment.home()
    environment.reach_hub(recipe.reaches_hub)
    store = Store(environment.store_root(home), wait, plan.forced_stages(force_from))
    run, name = str(runtime.flow_run.id or ""), str(runtime.flow_run.name or recipe.name)
    with ledger.record(home, recipe.name, command, run, name) as recorder:
        tags = {"prefect.flow_run_id": run, "recipe": recipe.name, "command": command, "git.commit": _commit()}
        tracker = Tracker(home, recipe.name, run or recorder.entry.id, name, tags, asdict(recipe))
        status = "FAILED"
        try:
            yield Chain(recipe, store, recorder, tracker)
            status = "FINISHED"
        except BaseException as error:
            if isinstance(error, InterruptedRun) or not isinstance(error, Exception):
                status = "KILLED"
            raise
        finally:
            tracker.end(status)


def _commit() -> str:
    """The checkout's commit, "" where there is none."""
    with suppress(OSError):
        words = ["git", "-C", str(environment.CHECKOUT), "rev-parse", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return ""
