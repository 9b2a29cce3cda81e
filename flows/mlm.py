"""The flow: from a corpus to a registered masked language model. Prefect runs it; the artifacts say what is to be done.

maskmill run quickstart              on the command line
python -m flows.mlm quickstart       the same flow, bare
flows/mlm.py:maskmill                the entry point for a Prefect deployment, from the checkout's root
"""

import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from flows import environment

environment.settle(environment.home())  # before Prefect is imported, which reads it

from prefect import flow, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.events.worker import EventsWorker  # noqa: E402
from prefect.logging.handlers import APILogWorker  # noqa: E402
from prefect.states import Completed  # noqa: E402

from flows import chain, faults, preempted, recipes, runners, slots  # noqa: E402
from flows.summary import Finished  # noqa: E402
from tasks import corpus, evaluate, modalities, pretrain, registry, shards, vocabulary  # noqa: E402
from tasks.artifacts import Manifest  # noqa: E402

Forced: TypeAlias = Literal["nothing", "corpus", "vocabulary", "shards", "pretrain", "evaluate", "register"]
"""A word for nothing, and no None: Prefect's form shows a drop-down then."""


def stage(name: str, run: Callable[..., tuple[Manifest, bool]]) -> Callable[..., Manifest]:
    """A stage as a Prefect task that ends in its manifest, or in the state Reused or Fetched that carries it.

    Prefect keeps no result and no cache: there is one opinion about what is fresh, the store's.
    """

    @task(name=name, cache_policy=NO_CACHE, persist_result=False, **faults.RETRIES)
    def make(*arguments: Any, **named: Any) -> Any:
        manifest, reused = run(*arguments, **named)
        if not reused:
            return manifest
        fetched = manifest.key in arguments[-1].fetched
        how = "came from the remote" if fetched else "is up to date"
        return Completed(name="Fetched" if fetched else "Reused", message=f"{manifest.key} {how}", data=manifest)

    def call(mill: chain.Chain, config: Any, *inputs: Any, **named: Any) -> Manifest:
        with mill.stage(name, config) as page:
            minutes = getattr(mill.recipe.timeouts, name)
            named_so = make.with_options(task_run_name=page.name, **faults.limit(minutes))
            state = named_so(config, *inputs, mill.store, **named, return_state=True)
            faults.refuse_late(state, name, minutes)
            page.manifest, page.reused = state.result(), state.name in ("Reused", "Fetched")
        return page.manifest

    return call


ingest = stage(corpus.STAGE, modalities.corpus)
learn = stage(vocabulary.STAGE, modalities.vocabulary)
shard = stage(shards.STAGE, shards.shards)
train = stage(pretrain.STAGE, pretrain.pretrain)
score = stage(evaluate.STAGE, evaluate.evaluate)
publish = stage(registry.STAGE, registry.register)


DELIVERY = 5.0
"""Seconds for the last words to Prefect's server, its events and its logs each."""
OPTIONS: dict[str, Any] = {"flow_run_name": chain.run_name, "persist_result": False}


@flow(name="maskmill", **OPTIONS)
def maskmill(
    recipe: str = "quickstart",
    source: list[str] = [],  # noqa: B006  (Prefect copies it, and its form shows it)
    set: list[str] = [],  # noqa: B006
    force_from: Forced = "nothing",
    wait: float = 600.0,
) -> Finished:
    """From a corpus to a registered masked language model; finished stages are found and reused.

    Args:
        recipe: A name in deployments/recipes/, or the path of a YAML file.
        source: Files, folders, globs or hf:NAME that take the place of the recipe's sources.
        set: Settings that differ from the recipe's, each as key.sub=value, such as pretrain.steps=100.
        force_from: Make this stage and all that follow again, although they are there.
        wait: Seconds to wait for another run that is making the same artifact.
    """
    settings = recipes.load(recipe, source, set)
    first = None if force_from == "nothing" else force_from
    command = recipes.command(recipe, source, set, first)
    with preempted.goes_on(), chain.opened(settings, command, first, wait) as mill:
        ready = prepare(mill, settings)
        second = prepare(mill, settings.second) if settings.second else None
        with slots.training():
            alone = train_alone(mill, settings, ready, second)
            beside = (second.words, second.rows) if second else ()
            given = {"on_metrics": mill.metrics, "shorter": ready.shorter, "fork": mill.fork, "beside": beside}
            weights = train(mill, settings.pretrain, ready.words, ready.rows, **given)
        judge(mill, settings, ready, weights, alone.get(settings.modality))
        if settings.second and second:
            judge(mill, settings.second, second, weights, alone.get(settings.second.modality))
        return mill.finished()


@flow(name="maskmill-data", **OPTIONS)
def data(
    recipe: str = "quickstart",
    source: list[str] = [],  # noqa: B006
    set: list[str] = [],  # noqa: B006
    force_from: Forced = "nothing",
    wait: float = 600.0,
) -> Finished:
    """Corpus, vocabulary and shards, so that a training finds them made.

    Args:
        recipe: A name in deployments/recipes/, or the path of a YAML file.
        source: Files, folders, globs or hf:NAME that take the place of the recipe's sources.
        set: Settings that differ from the recipe's, each as key.sub=value, such as shards.length=256.
        force_from: Make this stage and those that follow again, although they are there.
        wait: Seconds to wait for another run that is making the same artifact.
    """
    settings = recipes.load(recipe, source, set)
    first = None if force_from == "nothing" else force_from
    command = recipes.command(recipe, source, set, first, verb="data")
    with preempted.goes_on(), chain.opened(settings, command, first, wait) as mill:
        for strand in filter(None, (settings, settings.second)):
            prepare(mill, strand)
        return mill.finished()


@flow(name="maskmill-examine", **OPTIONS)
def examine(
    recipe: str = "quickstart",
    source: list[str] = [],  # noqa: B006
    set: list[str] = [],  # noqa: B006
    wait: float = 600.0,
) -> Finished:
    """Scores the champion on what the sources hold now: the test split of a new corpus, in the champion's vocabulary.

    Args:
        recipe: A name in deployments/recipes/, or the path of a YAML file. Its register.name says whose champion.
        source: Files, folders, globs or hf:NAME that take the place of the recipe's sources.
        set: Settings that differ from the recipe's, each as key.sub=value, such as evaluate.max_rows=512.
        wait: Seconds to wait for another run that is making the same artifact.
    """
    settings = recipes.load(recipe, source, set)
    command = recipes.command(recipe, source, set, verb="examine")
    with preempted.goes_on(), chain.opened(settings, command, None, wait) as mill:
        weights, words = mill.registered()
        with runners.pool(settings.runner) as pool:
            documents = ingest(mill, settings.corpus, pool=pool)
            rows = shard(mill, settings.shards, documents, words, pool=pool)
        score(mill, settings.evaluate, documents, words, rows, weights, None)
        return mill.finished()


class Prepared(NamedTuple):
    """What training needs of a modality."""

    documents: Manifest
    words: Manifest
    """The vocabulary."""
    rows: Manifest
    shorter: list[Manifest]
    """Shards of each of the shorter lengths."""


def prepare(mill: chain.Chain, settings: recipes.Recipe) -> Prepared:
    """The stages on data: corpus, vocabulary, shards, shards of each of the shorter lengths."""
    with runners.pool(settings.runner) as pool:
        documents = ingest(mill, settings.corpus, pool=pool)
        words = learn(mill, settings.vocabulary, documents)
        rows = shard(mill, settings.shards, documents, words, pool=pool)
        shorter = [shard(mill, config, documents, words, pool=pool) for config in settings.shorter]
    return Prepared(documents, words, rows, shorter)


def train_alone(
    mill: chain.Chain, settings: recipes.Recipe, first: Prepared, second: Prepared | None
) -> dict[str, Manifest]:
    """Each modality of a mixed recipe by itself, where it asks for that; by its name."""
    if not (settings.second and second and settings.pretrain.beside.alone):
        return {}
    found = {}
    for strand, config, of in (
        (settings, settings.alone, first),
        (settings.second, settings.second.pretrain, second),
    ):
        given = {"on_metrics": mill.metrics, "shorter": of.shorter}
        found[strand.modality] = train(mill, config, of.words, of.rows, **given)
    return found


def judge(
    mill: chain.Chain, settings: recipes.Recipe, data: Prepared, weights: Manifest, alone: Manifest | None = None
) -> None:
    """Evaluates what was trained on one modality, and registers it."""
    given = data.documents, data.words, data.rows, weights
    report = score(mill, settings.evaluate, *given, mill.champion(settings), **({"alone": alone} if alone else {}))
    publish(mill, settings.register, *given, report, **mill.links())


def deliver() -> None:
    """Sends what Prefect has not sent yet: a server that stops with this process would never get it, and say so.

    It has so many seconds. Prefect would go on with each event at the end of the process, ten tries or four timeouts
    of a minute each, which took a complete run ten minutes to end whose server was away.
    """
    for worker in (EventsWorker, APILogWorker):
        left = [(service._loop, service._task) for service in cast(Any, worker)._instances.values()]
        worker.drain_all(timeout=DELIVERY)
        for loop, work in left:
            if loop and work and not work.done():
                loop.call_soon_threadsafe(work.cancel)


if __name__ == "__main__":
    maskmill(sys.argv[1] if sys.argv[1:] else "quickstart")
