"""Is the learning real? Several seeds must beat the unigram baseline by 2 nats; with shuffled targets none may.

    python benchmarks/learning.py                                    3 seeds of the quickstart, then the control
    python benchmarks/learning.py --seeds 0 --tokens 2400000 --set learning_rate=0.006

Needs finished shards (maskmill run quickstart). The control permutes the targets within each batch: frequencies stay,
places carry nothing, so an honest trainer stays at the unigram level. Scores are held-out masked cross-entropy on
the frozen draws of the validation split, beside the unigram baseline on the very same positions.
"""

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from flows import environment, plan, recipes
from tasks import looping, pretrain, ranks, scoring, training
from tasks.artifacts import Manifest, Store, load
from tasks.batches import Batch, ShardReader, training_batch
from tasks.keys import Domain, keys


def shuffled(reader: ShardReader, first: int, rows: int, seed: int, **options: Any) -> Batch:
    """The batch with its targets permuted among its masked positions."""
    batch = training_batch(reader, first, rows, seed, **options)
    order = np.argsort(keys(seed, Domain.ORDER, first, [1], batch.count)[0], kind="stable")
    targets_M = batch.targets_M.clone()
    targets_M[: batch.count] = batch.targets_M[: batch.count][torch.from_numpy(order)]
    return dataclasses.replace(batch, targets_M=targets_M)


def unigram(shards: Manifest, rows: int) -> float:
    """Masked cross-entropy of the unigram baseline on the rows that validation looks at, nats per masked token."""
    reader = ShardReader(shards, "validation")
    counts = np.load(shards.path("unigrams.npy"), allow_pickle=False)
    scorer = scoring.unigram_scorer(counts, shards.facts["vocabulary"]["ordinary"])
    batches = scoring.frozen_batches(reader, np.arange(min(rows, reader.rows)), reader.rate, 64)
    return scoring.score({"unigram": scorer}, batches, lambda done: None)["unigram"].metrics()["masked_cross_entropy"]


def run(config: pretrain.PretrainConfig, vocabulary: Manifest, shards: Manifest) -> training.Training:
    """Trains in this process, in a folder that is thrown away."""
    folder = Path(tempfile.mkdtemp())
    (scratch := folder / ".scratch").mkdir()
    job = pretrain.job_of(config, vocabulary, [shards], folder, scratch, None)
    one = training.Training(job, ranks.Ranks(torch.device(job["config"]["device"])))
    looping.train(one)
    shutil.rmtree(folder)
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--source", action="append", default=[], help="as of maskmill run")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=0, help="budget of each run; 0 takes the recipe's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of pretrain")
    parser.add_argument("--no-control", action="store_true", help="leave out the run with shuffled targets")
    options = parser.parse_args()
    recipe = recipes.load(options.recipe, options.source)
    store = Store(environment.store_root(environment.home()))
    found = {verdict.stage: verdict for verdict in plan.plan(recipe, store)}
    if found["shards"].action != "reuse":
        raise SystemExit(f"The shards are not there ({found['shards'].why}); run: maskmill run {options.recipe}")
    vocabulary, shards = (load(store.root / stage / str(found[stage].key)) for stage in ("vocabulary", "shards"))
    settings = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in options.set)}
    settings |= {"validation_rows": 10**9, "validation_every": 10**9, "checkpoint_every": 10**9}
    if options.tokens:
        settings["tokens"] = options.tokens
    config = dataclasses.replace(recipe.pretrain, **settings)
    torch.set_num_threads(pretrain.identity(config, "", "").config["threads"])
    baseline = unigram(shards, 10**9)
    print(
        f"{'run':<18}{'validation':>11}{'unigram':>9}{'gain':>7}{'tokens':>11}{'seconds':>9}{'tokens/s':>10}",
        flush=True,
    )
    runs = [(f"seed {seed}", seed, training_batch) for seed in options.seeds]
    if not options.no_control:
        runs.append(("shuffled targets", 0, shuffled))
    for name, seed, batches in runs:
        training.training_batch = batches
        one = run(dataclasses.replace(config, seed=seed), vocabulary, shards)
        loss, seconds = one.points.validation, one.points.clock.seconds
        figures = f"{loss:>11.3f}{baseline:>9.3f}{baseline - loss:>7.3f}{one.tokens:>11,}{seconds:>9.0f}"
        print(f"{name:<18}{figures}{one.tokens / seconds:>10,.0f}", flush=True)


if __name__ == "__main__":
    main()
