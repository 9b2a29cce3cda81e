"""Which choices pay? AdamW or Muon, 15, 30 or 30→15 % hidden, [MASK] or 80/10/10: several seeds, one factor at a time.

    python benchmarks/ablations.py                          5 choices × 3 seeds of 3 million tokens, then the table
    python benchmarks/ablations.py --seeds 0 1 2 3 4 --only base adamw
    python benchmarks/ablations.py --set adamw.learning_rate=0.002 --set base.matrix_learning_rate=0.03
    python benchmarks/ablations.py --shape tiny --tokens 200000     to try it out

Each run is the stage pretrain on the shards of the stage before it, so what is measured is what a user gets. All have
the same model, tokens, steps, rows and, seed by seed, the same initial weights and order of rows; the masks of a rate
are nested in those of a higher one. Matched are the tokens; the CPU seconds of each run are noted, for a lower rate
costs less and Muon more. All are scored on the same frozen places of the validation split, which show [MASK], at 15 %
and at 30 %, in float32. `difference` is of the pairs of one seed, and its spread that of the pairs: it is what tells.

A setting of the base holds for all (`--set base.…`), one of a choice for it alone; a choice's are laid over the base's.
Runs are written to ablations.jsonl below --work: what is there is not repeated.
"""

import argparse
import resource
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import torch
from trial import SHAPES, Data, Journal, Measure, asked, config_of, fingerprint, parsed, prepared

from tasks import pretrain, scoring
from tasks.artifacts import Store
from tasks.rates import MaskRates

BASE = "base"
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: ("Muon, 30 %, [MASK]", {}),
    "adamw": ("AdamW on everything", {"optimizer": "adamw"}),
    "15": ("15 % hidden", {"mask_rates": MaskRates(rates=("0.15",))}),
    "30-15": ("30 → 15 % hidden", {"mask_rates": MaskRates("linear", ("0.3", "0.15"))}),
    "80/10/10": ("80/10/10", {"corruption": "80/10/10"}),
}
RATES = ("0.15", "0.3")


def run(config: pretrain.PretrainConfig, data: Data, measures: dict[str, Measure], store: Store) -> dict[str, Any]:
    """Trains, or finds the trained model; scores it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    made, reused = pretrain.pretrain(config, data.vocabulary, data.shards, store)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    scorer = scoring.model_scorer(scoring.load_model(made.folder / "model", "cpu"))
    return {
        "loss": {rate: round(measure.of({"": scorer}), 5) for rate, measure in measures.items()},
        "cpu": None if reused else round(cpu, 1),
        "seconds": made.measured()["training_seconds"],
        "tokens": made.counts["tokens"],
        "steps": made.counts["steps"],
    }


def spread(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{digits}f}{deviation}"


def report(found: dict[str, dict[int, dict[str, Any]]]) -> None:
    columns = [f"loss at {rate} | difference" for rate in RATES]
    print(f"\n| | n | {' | '.join(columns)} | training s | CPU s |\n|---|---|{'---|' * (2 * len(columns) + 2)}")
    for name, by_seed in found.items():
        cells = []
        for rate in RATES:
            cells.append(spread([one["loss"][rate] for one in by_seed.values()]))
            both = by_seed.keys() & found.get(BASE, {}).keys() if name != BASE else set()
            pairs = [by_seed[seed]["loss"][rate] - found[BASE][seed]["loss"][rate] for seed in sorted(both)]
            cells.append(spread(pairs, sign="+") if pairs else "")
        cpu = [one["cpu"] for one in by_seed.values() if one["cpu"]]
        times = [spread([one["seconds"] for one in by_seed.values()], 0), spread(cpu, 0) if cpu else ""]
        print(f"| {CHOICES[name][0]} | {len(by_seed)} | {' | '.join(cells + times)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked(parser)
    parser.add_argument("--only", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=3_000_000, help="budget of each run (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=32, help="of a step (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=1024, help="rows of the validation split that are scored")
    parser.add_argument("--set", action="append", default=[], metavar="CHOICE.KEY=VALUE", help="a setting of pretrain")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    extra: dict[str, dict[str, Any]] = {name: {} for name in CHOICES}
    for item in given.set:
        name, _, pair = item.partition(".")
        if name not in extra or "=" not in pair:
            raise SystemExit(f"--set {item}: write CHOICE.KEY=VALUE, with a choice of {', '.join(CHOICES)}.")
        extra[name] |= parsed(f"ours,{pair}")[1]
    shape, store = SHAPES[given.shape], Store(given.work / "store")
    data = {kind: prepared(shape, given.data, given.work, corruption=kind) for kind in ("mask", "80/10/10")}
    measures = {rate: Measure(data["mask"], given.held_out, rate) for rate in RATES}
    print(", ".join(f"unigram at {rate} {measure.unigram:.3f}" for rate, measure in measures.items()), flush=True)
    journal = Journal(given.work / "ablations.jsonl")
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in given.only}
    for seed in given.seeds:  # seed by seed, so that a table of all choices is there early
        for name in given.only:
            settings = {"tokens": given.tokens, "threads": given.threads, "device": "cpu", "rows": given.rows}
            settings |= {"validation_every": 1 << 30, "validation_rows": 64, "seed": seed}
            settings |= extra[BASE] | CHOICES[name][1] | extra[name]
            corruption = settings.pop("corruption", "mask")
            config = config_of(shape, **settings)
            key = {"choice": name, "shape": given.shape, "held_out": given.held_out, "config": fingerprint(config)}
            one = journal(key, lambda one=config, kind=corruption: run(one, data[kind], measures, store))
            found[name][seed] = one
            print(f"{name} seed {seed}: {one['loss']}, {one['seconds']:.0f} s, {one['steps']} steps", flush=True)
    report(found)


if __name__ == "__main__":
    main()
