"""Outcomes written by hand, as varied as those of a real evaluation: for the tests of the report and of compare."""

import math
from typing import Any

from tasks.results import BASELINE, CHAMPION, MODEL, UNIGRAM, UNTRAINED, Exposure, Figure, Metric, Outcome, Table

NATS = Metric("masked cross-entropy", "nats per masked token", "lower", "masked tokens")
PERPLEXITY = Metric("perplexity", "", "lower", "masked tokens")
TOP1 = Metric("top-1 accuracy", "%", "higher", "masked tokens")
ECE = Metric("expected calibration error", "%", "lower", "masked tokens")
PAIRS = Metric("accuracy", "%", "higher", "pairs")
RIGHT = Metric("accuracy", "%", "higher", "examples")
MATTHEWS = Metric("Matthews correlation", "", "higher", "examples")
CHANCE, SHORTER, BAG = BASELINE + "chance", BASELINE + "shorter_sentence", BASELINE + "bag_of_words"
THREEGRAM, PUBLISHED = BASELINE + "word_3-gram", BASELINE + "RoBERTa-base_(published)"


def around(value: float, n: int, by: float = 0.02) -> Figure:
    return Figure(value, n, value - by, value + by)


def intrinsic(models: dict[str, float], rate: str = "0.3") -> Outcome:
    """Masked scores: a calibration picture, deciles, an endless perplexity."""
    losses = {**models, UNIGRAM: 6.655, BASELINE + "bigram": 5.2, UNTRAINED: 6.66}
    n = 60_412
    figures = {
        "masked_cross_entropy": {label: around(loss, n) for label, loss in losses.items()},
        "perplexity": {
            label: Figure(math.exp(loss) if label != UNTRAINED else math.inf, n) for label, loss in losses.items()
        },
        "top1_accuracy": {label: around(0.6 - loss / 12, n, 0.004) for label, loss in losses.items()},
        "calibration_error": {label: Figure(0.012 + 0.001 * at, n) for at, label in enumerate(losses)},
    }
    bins = [[0.1 * at + 0.05, min(1.0, 0.1 * at + 0.03 + 0.004 * at * at), 9000 - 800 * at] for at in range(10)]
    deciles = tuple(f"{10 * at} to {10 * at + 10} %" for at in range(10))
    table = Table(
        "top-1 accuracy by how frequent the token is",
        "frequency decile",
        TOP1,
        deciles,
        {
            label: tuple(around(max(0.01, 0.7 - 0.06 * at - loss / 20), 600 * (10 - at)) for at in range(10))
            for label, loss in losses.items()
        },
        main=True,
    )
    by_source = Table(
        "top-1 accuracy by source",
        "source",
        TOP1,
        ("novels", "peps"),
        {label: (around(0.4, 40_000), None) for label in models},
    )
    return Outcome(
        f"rate_{rate}",
        "intrinsic",
        f"Held-out text, {float(rate):.0%} masked",
        "masked_cross_entropy",
        {
            "masked_cross_entropy": NATS,
            "perplexity": PERPLEXITY,
            "top1_accuracy": TOP1,
            "calibration_error": ECE,
        },
        figures,
        (table, by_source),
        {"rows": 2029, "documents": 812},
        ("The test split is held out from training: its exposure is not measured.",),
        {"reliability": dict.fromkeys(models, bins), "rate": rate},
    )


def pairs(models: dict[str, float], paradigms: int = 67) -> Outcome:
    """Minimal pairs: six baselines, many paradigms with long names, an empty class, a figure that is none."""
    baselines = {CHANCE: 0.5, SHORTER: 0.512, UNIGRAM: 0.55, THREEGRAM: 0.663, UNTRAINED: 0.497, PUBLISHED: 0.825}
    n = 300 * paradigms
    names = tuple(
        f"{'principle_A_reconstruction_' * (at % 3)}paradigm_{at}_with_a_long_name_{'x' * (at % 7)}"
        for at in range(paradigms)
    )
    columns: dict[str, Any] = {
        label: tuple(
            None if at == 5 else Figure(math.nan if at == 7 else min(1, value + 0.3 * math.sin(at)), 300)
            for at in range(paradigms)
        )
        for label, value in {**models, THREEGRAM: 0.663}.items()
    }
    return Outcome(
        "zorro",
        "minimal_pairs",
        "Zorro",
        "accuracy",
        {"accuracy": PAIRS, "ties": Metric("ties", "%", "lower", "pairs")},
        {
            "accuracy": {label: around(value, n, 0.013) for label, value in {**models, **baselines}.items()},
            "ties": {label: Figure(0.0, n) for label in [*models, CHANCE]},
        },
        (
            Table("By paradigm", "paradigm", PAIRS, names, columns),
            Table(
                "By phenomenon",
                "phenomenon",
                PAIRS,
                ("agreement", "filler-gap"),
                {label: (around(value, 900, 0.03), around(value - 0.1, 600, 0.04)) for label, value in models.items()},
                main=True,
            ),
        ),
        {"pairs": n, "too_long": 3, "with rare words": 1204},
        ("Ties count as wrong.",),
        exposure=Exposure(2 * n, 300, 2),
    )


def classes(models: dict[str, float], name: str = "cola", n: int = 527) -> Outcome:
    """A small downstream set on which nothing is told apart."""
    row = {**models, UNTRAINED: 0.06, BAG: 0.09}
    return Outcome(
        name,
        "classification",
        {"cola": "CoLA", "rte": "RTE"}.get(name, name),
        "matthews",
        {"matthews": MATTHEWS, "accuracy": RIGHT},
        {
            "matthews": {label: around(value, n, 0.08) for label, value in row.items()},
            "accuracy": {
                **{label: around(0.69 + value / 10, n) for label, value in row.items()},
                BASELINE + "most_frequent_class": Figure(0.69, n),
            },
        },
        counts={"examples": n, "label_unseen_in_training": 1},
        remarks=("Three seeds; intervals hold both seeds and examples.",),
        exposure=Exposure(n, 0, 0),
    )


ONE = {MODEL: 3.608}


def of_one() -> list[Outcome]:
    """A report's outcomes of a model beside its champion."""
    return [
        intrinsic({MODEL: 3.411, CHAMPION: 3.5}, "0.15"),
        intrinsic({MODEL: 3.608, CHAMPION: 3.622}),
        pairs({MODEL: 0.702}),
        classes({MODEL: 0.12}),
        classes({MODEL: 0.4}, "rte", 800),
    ]


def of_two(first: str = "mine/3", second: str = "bert-base-uncased") -> list[Outcome]:
    """A comparison's."""
    return [
        pairs({first: 0.702, second: 0.853}),
        classes({first: 0.12, second: 0.15}),
        classes({first: 0.4, second: 0.2}, "rte", 800),
    ]
