"""How long until a loss? Of run_mlm.py's way and of the best stock ModernBERT after 10 minutes, and ours to get there.

    python benchmarks/time_to_loss.py                              all runs (about 80 minutes), then the table
    python benchmarks/time_to_loss.py --only ours --budgets 0.5 1  some of them; finished ones are not repeated
    python benchmarks/time_to_loss.py --smoke                      everything once, in minutes, on a toy

The measure is the masked cross-entropy, nats per masked token, at 15 % on frozen places of the validation split, all
showing [MASK]: the same rows, places and targets for every model, in float32, without dropout. An opponent is asked in
two ways, with segments apart as ours sees them, and with rows whole as its own training showed them, and the better
one counts; at L 128 nearly every row is one segment, and the two hardly differ. Looking takes no time: the clock runs
during steps only, for opponents without their data, for ours with data, checkpoints and curve of a real run.

run_mlm      bert, its defaults: 8 blocks a step, dropout, float32, linear schedule over the budget; --rates-bert
modernbert   bf16, sparse prediction, fastest settings of steps.py, AdamW as ModernBERT's (betas 0.9, 0.98, eps 1e-6,
             decay 1e-5 on everything), warmup and linear schedule, 30 % hidden; --rates-modernbert
ours         the stage pretrain as it comes, once for each budget, since its schedule decays to the budget; the steps of
             a budget are those of a trial run of a few steps; --ours key=value,… for other settings

Learning rates of the opponents are tried one by one, and each opponent's best final loss is the mark. Runs are written
to time-to-loss.jsonl below --work. With `--clock cpu --threads 1`, budgets are CPU seconds: for a machine that others
use (ours then pays for its process's start as well).
"""

import argparse
import resource
import time
from dataclasses import asdict
from typing import Any

import torch
from opponents import Opponent, Settings
from trial import SHAPES, Data, Journal, Measure, Shape, asked, config_of, fingerprint, parsed, prepared

from tasks import pretrain, scoring
from tasks.artifacts import Store

MODERNBERT = "modernbert,dtype=bfloat16,rows=0,micro=16,sparse=true,attention=eager,compile=encoder"
MODERNBERT += ",mask_rate=0.3,warmup=0.05,beta2=0.98,eps=1e-6,decay=1e-5"
TRIAL_STEPS = 40
"""Of the run that tells how many steps a budget has."""


def opponent_run(shape: Shape, data: Data, measure: Measure, settings: Settings, given: Any) -> dict[str, Any]:
    """Trains for the budget; the loss every `--every` seconds of it."""
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    side, budget, spent, tokens, steps = Opponent(shape, data, settings), given.minutes * 60, 0.0, 0, 0
    points, due = [], 0.0
    if settings.compile:  # compiled and warm before the clock starts: its first step is a lost one, at no rate at all
        side.step(share=1.0)
    while spent < budget:
        if spent >= due:
            points.append({"seconds": round(spent, 1), "loss": round(measure.side(side), 4), "tokens": tokens})
            print(f"    {spent:6.0f} s  {points[-1]['loss']:.3f}  {tokens:,} tokens", flush=True)
            due += given.every
        side.prepare()
        began = clock()
        tokens += side.step(spent / budget)
        spent += clock() - began
        steps += 1
    points.append({"seconds": round(spent, 1), "loss": round(measure.side(side), 4), "tokens": tokens})
    return {
        "loss": points[-1]["loss"],
        "seconds": points[-1]["seconds"],
        "tokens": tokens,
        "steps": steps,
        "points": points,
    }


def our_run(config: pretrain.PretrainConfig, data: Data, measure: Measure, store: Store) -> dict[str, Any]:
    """The real stage, and the loss of what it made."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    made, reused = pretrain.pretrain(config, data.vocabulary, data.shards, store)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = made.measured()["training_seconds"]
    loss = measure.of({"ours": scoring.model_scorer(scoring.load_model(made.folder / "model", "cpu"))})
    figures = {
        "loss": round(loss, 4),
        "seconds": seconds,
        "cpu": None if reused else round(cpu, 1),
        "tokens": made.counts["tokens"],
    }
    return figures | {"steps": made.counts["steps"]}


def runs(shape: Shape, data: Data, given: Any) -> dict[str, list[dict[str, Any]]]:
    """Every run that was asked for, by side."""
    journal = Journal(given.work / "time-to-loss.jsonl")
    measure = Measure(data, given.held_out)
    print(f"unigram {measure.unigram:.3f} on {measure.masked:,} places", flush=True)
    same = {"shape": given.shape, "threads": given.threads, "clock": given.clock, "held_out": given.held_out}
    found: dict[str, list[dict[str, Any]]] = {"run_mlm": [], "modernbert": [], "ours": []}
    for name, spec, rates in (
        ("run_mlm", given.bert, given.rates_bert),
        ("modernbert", given.modernbert, given.rates_modernbert),
    ):
        for rate in rates if name in given.only else []:
            kind, chosen = parsed(spec)
            settings = Settings(kind, **chosen | {"rate": rate})
            print(f"{name} at {rate:g}, {given.minutes:g} minutes", flush=True)
            run = {"side": name, "minutes": given.minutes, "every": given.every, **same, **asdict(settings)}
            found[name].append(
                journal(run, lambda settings=settings: opponent_run(shape, data, measure, settings, given))
            )
    if "ours" in given.only:
        found["ours"] = our_runs(shape, data, measure, journal, same, given)
    return found


def our_runs(shape: Shape, data: Data, measure: Measure, journal: Journal, same: Any, given: Any) -> list[Any]:
    """One for each budget, in minutes."""
    store, settings = Store(given.work / "store"), {"threads": given.threads, "device": "cpu"}
    settings |= {"validation_every": 1 << 30, "validation_rows": 64}  # looks of its own cost time: one, at the end
    settings |= parsed(",".join(filter(None, ("ours", given.ours))))[1]

    def made(steps: int, what: dict[str, Any]) -> dict[str, Any]:
        config = config_of(shape, **settings | {"steps": steps})
        run = {"side": "ours", **what, **same, "config": fingerprint(config)}
        return journal(run, lambda: our_run(config, data, measure, store))

    trial = spent(made(TRIAL_STEPS, {"trial": TRIAL_STEPS}), given.clock)
    found = []
    for minutes in given.budgets:
        steps = max(1, round(60 * minutes * TRIAL_STEPS / trial))
        print(f"ours, {minutes:g} minutes, {steps} steps", flush=True)
        found.append(made(steps, {"minutes": minutes}))
    return found


def spent(run: dict[str, Any], clock: str) -> float:
    """Seconds of a run; CPU seconds, where that is the clock and they are known, of ours with the process's start."""
    return (run.get("cpu") if clock == "cpu" else None) or run["seconds"]


def report(found: dict[str, list[dict[str, Any]]], clock: str) -> None:
    print("\n| run | learning rate | minutes | loss at 15 % | tokens | tokens/s |\n|---|---|---|---|---|---|")
    for name, some in found.items():
        for one in some:
            seconds = spent(one, clock)
            print(
                f"| {name} | {one['run'].get('rate', 'recipe')} | {seconds / 60:.2f} | {one['loss']:.3f} | "
                f"{one['tokens']:,} | {one['tokens'] / seconds:,.0f} |"
            )
    for name in ("run_mlm", "modernbert"):
        if not found[name]:
            continue
        mark = min(found[name], key=lambda one: one["loss"])
        there = [one for one in found["ours"] if one["loss"] <= mark["loss"]]
        said = f"{name}: {mark['loss']:.3f} after {mark['seconds'] / 60:.2f} minutes at {mark['run']['rate']:g}; ours "
        if there:
            minutes = min(spent(one, clock) for one in there) / 60
            print(f"{said}is there after {minutes:.2f} minutes, {mark['seconds'] / 60 / minutes:.1f} times as fast")
        else:
            print(f"{said}is not there with these budgets")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked(parser)
    parser.add_argument("--only", nargs="+", default=["run_mlm", "modernbert", "ours"])
    parser.add_argument("--minutes", type=float, default=10, help="of an opponent's run")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 1, 2, 5], help="of ours, in minutes")
    parser.add_argument("--rates-bert", type=float, nargs="+", default=[5e-5, 3e-4, 1e-3])
    parser.add_argument("--rates-modernbert", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--bert", default="bert", metavar="SPEC", help="its settings (default: %(default)s)")
    parser.add_argument("--modernbert", default=MODERNBERT, metavar="SPEC", help="(default: %(default)s)")
    parser.add_argument("--ours", default="", metavar="KEY=VALUE,…", help="settings of pretrain, with rows and micro")
    parser.add_argument("--every", type=float, default=30, help="seconds between two looks")
    parser.add_argument("--held-out", type=int, default=512, help="rows of the validation split that are scored")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--smoke", action="store_true", help="a toy: shape tiny, seconds instead of minutes")
    given = parser.parse_args()
    if given.smoke:
        given.shape, given.minutes, given.budgets, given.every, given.held_out = "tiny", 0.1, [0.05, 0.1], 2, 64
        given.rates_bert, given.rates_modernbert = given.rates_bert[1:2], given.rates_modernbert[:1]
    torch.set_num_threads(given.threads)
    shape = SHAPES[given.shape]
    report(runs(shape, prepared(shape, given.data, given.work), given), given.clock)


if __name__ == "__main__":
    main()
