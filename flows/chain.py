"""What is said, written down and mirrored around each stage of a run; the stages themselves know none of it.

The artifacts are the truth and the ledger is the history. Prefect's cards and MLflow's runs mirror them: a server that
fails costs its picture of the run, never the run.
"""

import contextvars
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from threading import Thread
from typing import Any, cast
from uuid import UUID

from prefect import get_client, runtime
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from flows import environment, ledger, plan, summary, ui
from flows.recipe import Recipe
from tasks import artifacts, registry, remote_store, versions
from tasks.artifacts import Manifest, Store
from tasks.errors import InterruptedRun, UnreachableError, UsageError, without_secrets
from tasks.progress import Bar, clock, say, watched
from tasks.tracking import StageRun, Tracker

DRAW_EVERY = 5.0
"""Seconds between two pictures of a running training, at least."""
PATIENCE = 2.0
"""Seconds to wait for its last picture."""
LONGEST = 300
"""Characters of an error in it."""
REST = 60.0
"""Seconds that a Prefect server is left alone which was away: each question to it costs a quarter of a minute."""
CHANGES = 60
"""Characters of a run's settings in its name."""


class Page:
    """A part of the run, and what it came to; filled in by its task."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.manifest: Manifest | None = None
        self.reused = False


def run_name() -> str:
    """How a flow run is called in the Prefect UI: the recipe, what it changes, and when it started."""
    started, given = runtime.flow_run.scheduled_start_time, runtime.flow_run.parameters
    changes = " ".join(given["set"])
    changes = f" {changes[:CHANGES]}{'…' if len(changes) > CHANGES else ''}" if changes else ""
    return f"{given['recipe']}{changes} {started:%Y-%m-%d %H:%M:%S}"


@contextmanager
def mirrored(tell: Callable[[str], None] = say) -> Iterator[None]:
    """Whatever the Prefect server does in this block, the run goes on; `tell` hears of the trouble."""
    try:
        yield
    except Exception as error:
        what = without_secrets(f"{type(error).__name__}: {error}")
        tell(f"Prefect cannot show all of this run ({what}); the run goes on")


class Chain:
    """One pass over the parts of a run: its six stages, and shards of shorter rows."""

    def __init__(self, recipe: Recipe, store: Store, recorder: ledger.Recorder, tracker: Tracker) -> None:
        self.recipe, self.store, self.recorder, self.tracker = recipe, store, recorder, tracker
        self.parts = plan.parts(recipe)
        self.manifests: dict[str, Manifest] = {}
        """Of each part that is done."""
        self.fork = plan.refuse(recipe, store)
        """The run that this one is forked from."""
        if self.fork:
            recorder.needs(self.fork.digest)
            if not self.fork.folder.exists():
                store.with_digest(self.fork.stage, self.fork.digest)  # the remote has it
            self.fork = plan.refuse(recipe, store)  # from here on `maskmill gc` knows that it is needed; is it there?
        self.rival: Manifest | None = None
        self.stage_run: StageRun | None = None
        self._last: tuple[float, str, str] | None = None  # how far the stage is: per cent, in words, and how fast
        self._drawn = 0.0
        self._pictures: dict[str, UUID] = {}
        self._name = ""
        self._artist: Thread | None = None
        self._warned = self._linked = False
        self._asked_again = 0.0  # when a server that was away is

    def champion(self, strand: Recipe) -> Manifest | None:
        """The weights that the new ones are compared with, of the recipe or of its second modality."""
        self.rival = registry.champion(strand.register.name, self.store, self.manifests["pretrain"].digest)
        if self.rival:
            self.recorder.needs(self.rival.digest)
        return self.rival

    def registered(self) -> tuple[Manifest, Manifest]:
        """The champion's weights and its vocabulary, in place of those that a run makes.

        Raises UsageError where there is none, or the store does not hold it (any more).
        """
        name = self.recipe.register.name
        weights = registry.champion(name, self.store)
        words = self.store.with_digest("vocabulary", weights.identity.inputs["vocabulary"]) if weights else None
        if weights is None or words is None:
            raise UsageError(f"There is no champion of {name} whose weights and vocabulary are in {self.store.root}.")
        if self.recipe.shards.length > weights.facts["model"]["length"]:
            context = weights.facts["model"]["length"]
            raise UsageError(f"shards.length: the champion of {name} reads {context} tokens at most; give no more.")
        self.manifests |= {"pretrain": weights, "vocabulary": words}
        return weights, words

    def links(self) -> dict[str, Any]:
        """What the registry writes beside a version, for people; MLflow's run should be there by then."""
        self.tracker.flush()
        command = without_secrets(self.recorder.entry.command)
        return {"run": self.tracker.run_id or None, "command": command, "commit": commit()}

    def finished(self) -> summary.Finished:
        """What the flow hands back."""
        made = self.manifests.get("register")
        version = registry.registered(made) if made else None
        return summary.Finished(self.recipe.name, self.manifests, self.recorder.entry.stages, version)

    @contextmanager
    def stage(self, stage: str, config: Any) -> Iterator[Page]:
        """Around a stage with its settings: says why it runs, and afterwards what came of it."""
        part = next(one for one in self.parts.values() if (one.stage, one.config) == (stage, config))
        digests = {name: manifest.digest for name, manifest in self.manifests.items()}
        rival = self.rival.digest if self.rival else None
        try:
            identity = plan.identity_of(part, digests, self.store, rival, self.fork)
            verdict, inputs = plan.judge(part, identity, self.store), list(identity.inputs.values())
        except UnreachableError as error:  # the stage meets it, too; there Prefect tries again
            verdict, inputs = plan.Verdict(part.name, "run", str(error)), []
        if verdict.action != "reuse":
            say(f"{part.name:<10}  {verdict.action}: {verdict.why}")
        self.recorder.stage(part.name, "running", why=verdict.why, key=verdict.key or "", inputs=inputs)
        started, page, self._name = time.monotonic(), Page(part.name), part.name
        with self.tracker.stage(part.name, asdict(config)) as self.stage_run:
            try:
                with watched(self._watch):
                    yield page
            except BaseException as error:
                with suppress(BaseException):  # a second Ctrl-C ends the wait for a picture; the first error goes on
                    self._ended(error)
                raise
            self._trained()
            assert page.manifest is not None
            self.stage_run.record(page.manifest, page.reused, self._inputs(part))
        self.tracker.made(part.name, page.manifest)
        if stage == "evaluate":
            of = part.name.removeprefix(stage).strip()  # the second modality
            metrics = page.manifest.facts["metrics"]
            self.tracker.metrics({f"{of}/{name}": value for name, value in metrics.items()} if of else metrics)
        state = plan.outcome(self.store, page.manifest, page.reused)
        self._done(part.name, page.manifest, state, time.monotonic() - started)
        for name, what in (("card.html", "card"), ("report.html", "report")):
            if name in page.manifest.files:
                say(f"{part.name:<10}  its {what}: {page.manifest.path(name)}")

    def _inputs(self, part: plan.Part) -> dict[str, Manifest]:
        inputs = {name: self.manifests[name] for name in part.needs}
        return inputs | ({"fork": self.fork} if self.fork and part.stage == "pretrain" else {})

    def _done(self, name: str, manifest: Manifest, state: str, seconds: float) -> None:
        self.manifests[name] = manifest
        self.recorder.stage(name, state, seconds=round(seconds, 3), key=manifest.key, digest=manifest.digest)
        say(f"{name:<10}  {state} in {seconds:.1f} s: {summary.what(manifest)}")
        entry = self.recorder.entry.stages[name]
        if time.monotonic() < self._asked_again:
            return
        with mirrored(self._once):
            text = summary.card(name, manifest, entry, self.recipe.name)
            create_markdown_artifact(text, key=name.replace(" ", "-"), description=f"{name}: {state}")
            self._link()

    def _link(self) -> None:
        """Tells Prefect which MLflow run this is, as soon as it is known: a tag to search for, a page to click."""
        run, flow_run = self.tracker.run_id, str(runtime.flow_run.id or "")
        if self._linked or not run or not flow_run:
            return
        self._linked = True
        page = self.tracker.page
        text = (
            f"MLflow run [{run}]({page})"
            if page
            else f"MLflow run `{run}`, in the experiment {self.recipe.name}: `maskmill ui` shows it"
        )
        create_markdown_artifact(text, key="mlflow-run", description=f"MLflow run {run}")
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run), tags=sorted({*runtime.flow_run.tags, f"mlflow:{run}"}))

    def _once(self, trouble: str) -> None:
        """The first trouble with Prefect is said, no other; and it is left alone for a while."""
        self._asked_again = time.monotonic() + REST
        if not self._warned:
            say(trouble)
        self._warned = True

    def metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Takes new lines of the training's spool, for MLflow, and now and then draws a picture of it in Prefect.

        Called by who watches the training: waits for no server.
        """
        assert self.stage_run is not None
        self.stage_run.ship(records)
        self._last = _described(records[-1])
        if time.monotonic() - self._drawn >= DRAW_EVERY:
            self._draw()

    def _watch(self, bar: Bar) -> None:
        """The same for a stage with a bar, now and then."""
        self._last = 100 * min(bar.done / bar.total, 1.0) if bar.total else 0.0, bar.line(), ""
        self._draw()

    def _draw(self, end: str = "") -> None:
        """In a thread of its own. While that waits for a server that hangs, there are no new pictures.

        end     how the training ended, where it did not come to its end
        """
        busy = self._artist is not None and self._artist.is_alive()
        if busy or time.monotonic() < self._asked_again:
            return
        self._drawn = time.monotonic()
        context = contextvars.copy_context()  # Prefect's: whose picture it is
        words = (self._mirror, self._name, self._last, end)
        self._artist = Thread(target=context.run, args=words, name="picture", daemon=True)
        self._artist.start()

    def _finish_picture(self) -> None:
        if self._artist is not None:
            self._artist.join(PATIENCE)

    def _mirror(self, name: str, far: tuple[float, str, str], end: str) -> None:
        with mirrored(self._once):
            done, where, pace = far
            said = f"{where}; {end}" if end else f"{where}{pace}"
            if name not in self._pictures:
                key = f"{name.replace(' ', '-')}-progress"
                picture = create_progress_artifact(0.0, key=key, description=name)
                self._pictures[name] = cast(UUID, picture)  # a coroutine only where there is an event loop
            update_progress_artifact(self._pictures[name], done, description=said)

    def _trained(self) -> None:
        """The last picture shows the last step, and MLflow has every point, where that takes seconds; else later."""
        if self._last:
            self._draw_last()
            self.tracker.flush()

    def _ended(self, error: BaseException) -> None:
        """The last picture of a training that did not come to its end says so. At most twice PATIENCE."""
        if self._last:
            why = without_secrets(" ".join(str(error).split()))[:LONGEST] or type(error).__name__
            self._draw_last(f"{'interrupted' if _is_interruption(error) else 'failed'}: {why}")

    def _draw_last(self, end: str = "") -> None:
        self._finish_picture()
        self._draw(end)
        self._finish_picture()
        self._last = None


def _described(record: Mapping[str, Any]) -> tuple[float, str, str]:
    """How far a training is, by a line of its spool."""
    metrics = record["metrics"]
    where, pace = f"step {record['step']:,}, loss {metrics.get('train/loss', float('nan')):.3f}", ""
    if metrics.get("train/seconds_left"):
        pace = f", {metrics['train/tokens_per_second']:,.0f} tokens/s, {clock(metrics['train/seconds_left'])} left"
    return 100 * metrics["train/progress"], where, pace


@contextmanager
def opened(recipe: Recipe, command: str, force_from: str | None, wait: float) -> Iterator[Chain]:
    """The chain of one flow run. Its entry in the ledger and its run in MLflow end the way it ends.

    A run that was stopped, and is started again with the same settings, goes on in the same run of MLflow.
    """
    environment.check_mlflow()
    home = environment.home()
    versions.check_access(home)
    environment.reach_hub(recipe.reaches_hub)
    remote = remote_store.at(environment.remote(recipe.remote))
    store = Store(environment.store_root(home), wait, plan.forced_stages(force_from), remote)
    flow_run, name = str(runtime.flow_run.id or ""), str(runtime.flow_run.name or recipe.name)
    settings = artifacts.digest_of([json.dumps(recipe.settings, default=str, sort_keys=True), force_from or ""])
    before = ledger.stopped(home, settings)
    with ledger.record(home, recipe.name, command, flow_run, name) as recorder:
        run = before.run if before else flow_run or recorder.entry.id
        recorder.entry.settings, recorder.entry.run = settings, run
        recorder.save()
        tags, sweep = _tags(recipe, command, flow_run, name), str(runtime.flow_run.parent_flow_run_id or "")
        tracker = Tracker(home, recipe.name, run, name, tags, recipe.settings, sweep)
        status = "FAILED"
        try:
            yield Chain(recipe, store, recorder, tracker)
            status = "FINISHED"
        except BaseException as error:
            if _is_interruption(error):
                status = "KILLED"
            raise
        finally:
            tracker.end(status)


@contextmanager
def gathered(recipe: Recipe, command: str) -> Iterator[None]:
    """One run of MLflow above those of a sweep; the sweep's flow runs in the block."""
    flow_run, name = str(runtime.flow_run.id or ""), str(runtime.flow_run.name or recipe.name)
    tracker = Tracker(environment.home(), recipe.name, flow_run, name, _tags(recipe, command, flow_run, name))
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except BaseException as error:
        if _is_interruption(error):
            status = "KILLED"
        raise
    finally:
        tracker.end(status)


def _tags(recipe: Recipe, command: str, flow_run: str, name: str) -> dict[str, str]:
    """What MLflow says of a run: whose it is, by which words and which code; its own names where it shows them."""
    tags = {"recipe": recipe.name, "command": command, "git.commit": commit(), "prefect.flow_run_id": flow_run}
    tags |= {"prefect.flow_run_name": name, "prefect.deployment": str(runtime.deployment.name or "")}
    tags |= {"mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
    tags["mlflow.source.git.commit"] = tags["git.commit"].partition(" ")[0]
    if flow_run and not os.environ.get(ui.EMBEDDED):  # the address of an embedded server ends with it
        tags["prefect.url"] = str(runtime.flow_run.ui_url)
        tags["mlflow.note.content"] = f"Prefect: [{name}]({tags['prefect.url']})\n\n    {command}"
    return {tag: value for tag, value in tags.items() if value}


def _is_interruption(error: BaseException) -> bool:
    return isinstance(error, InterruptedRun) or not isinstance(error, Exception)


@cache
def commit() -> str:
    """The checkout's commit, and whether files differ from it; "" where there is none. An image knows its own."""
    if known := os.environ.get("MASKMILL_COMMIT"):
        return known
    words = ["git", "-C", str(environment.CHECKOUT)]
    with suppress(OSError):
        head = subprocess.run([*words, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        status = [*words, "status", "--porcelain", "--untracked-files=no"]
        changed = head and subprocess.run(status, capture_output=True, text=True, check=False).stdout.strip()
        return f"{head} with changes" if changed else head
    return ""
