"""How far predicted classes agree with the true ones, and how sure that is.

    accuracy    share of the examples whose class is right
    mcc         correlation of two classes (Matthews, 1975), 0 where all predictions or all truths are of one class:
                (TP·TN − FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN))
    macro_f1    mean over the classes of the test set of 2·TP / (2·TP + FP + FN)

A figure is the mean over seeds, and two things make it unsure: that the test set is a sample, and that another seed
would have given another model. Its interval holds both,

    mean ± √( (1.96·e)² + (t·s/√S)² )

with e the standard error of the mean over seeds under the bootstrap over test units (examples; sentences, whose words
depend on each other), s the standard deviation over the S seeds on the whole test set, and t the 97.5 % quantile of
Student's t with S − 1 degrees of freedom (4.3 for three seeds). An interval over seeds alone would be of these test
examples only; one over examples alone, of these trained models only. A little of the noise of single answers is in
both terms, so it is rather too wide than too narrow.

Suffixes: S seeds, N examples, K classes.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bootstrap import DRAWS
from .results import Figure, Metric

TITLES = {
    "accuracy": Metric("accuracy", "%"),
    "mcc": Metric("Matthews correlation"),
    "macro_f1": Metric("macro-F1", "%"),
}
RANGE = {"accuracy": (0.0, 1.0), "mcc": (-1.0, 1.0), "macro_f1": (0.0, 1.0)}
Z = 1.96


def confusion(truth_N: ArrayLike, predicted_N: ArrayLike, classes: int) -> NDArray[np.float64]:
    """How often a true class (row) was taken for another (column): (K, K)."""
    cells = np.asarray(truth_N, np.int64) * classes + np.asarray(predicted_N, np.int64)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def metric_of(name: str, confusion_KK: NDArray[np.float64]) -> NDArray[np.float64]:
    """A metric of each matrix (…, K, K)."""
    if name == "accuracy":
        return np.trace(confusion_KK, axis1=-2, axis2=-1) / confusion_KK.sum((-2, -1))
    if name == "macro_f1":
        hits = np.diagonal(confusion_KK, axis1=-2, axis2=-1)
        true, said = confusion_KK.sum(-1), confusion_KK.sum(-2)
        f1 = 2 * hits / np.maximum(true + said, 1)
        there = true > 0
        return (f1 * there).sum(-1) / np.maximum(there.sum(-1), 1)
    tn, fp, fn, tp = (confusion_KK[..., row, column] for row in (0, 1) for column in (0, 1))
    square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return np.where(square > 0, (tp * tn - fp * fn) / np.sqrt(np.maximum(square, 1)), 0.0)


def judged(
    metrics: Sequence[str],
    truth_N: ArrayLike,
    predicted_SN: ArrayLike,
    classes: int,
    units_N: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[dict[str, Figure], dict[str, list[float]]]:
    """Each metric's figure over the seeds, and its values by seed.

    units_N     what is drawn anew by the bootstrap: the number of each example's unit; None: the example itself
    """
    truth_N, predicted_SN = np.asarray(truth_N, np.int64), np.asarray(predicted_SN, np.int64)
    units_N = np.arange(len(truth_N)) if units_N is None else np.asarray(units_N, np.int64)
    cells_SN = truth_N * classes + predicted_SN
    units, size = int(units_N.max()) + 1, classes**2
    whole = np.stack([np.bincount(cells_N, minlength=size) for cells_N in cells_SN]).astype(np.float64)
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = np.empty((DRAWS, *whole.shape))
    for draw in range(DRAWS):
        weight_N = np.bincount(generator.integers(0, units, units), minlength=units)[units_N]
        for seed_number, cells_N in enumerate(cells_SN):
            drawn[draw, seed_number] = np.bincount(cells_N, weights=weight_N, minlength=size)
    figures, by_seed = {}, {}
    for name in metrics:
        values_S = metric_of(name, whole.reshape(-1, classes, classes))
        error = float(metric_of(name, drawn.reshape(DRAWS, -1, classes, classes)).mean(1).std(ddof=1))
        value, half = float(values_S.mean()), math.hypot(Z * error, _spread(values_S))
        least, most = RANGE[name]
        figures[name] = Figure(value, len(truth_N), max(least, value - half), min(most, value + half))
        by_seed[name] = [round(float(one), 6) for one in values_S]
    return figures, by_seed


def apart(truth_N: ArrayLike, first_SN: ArrayLike, second_TN: ArrayLike) -> Figure:
    """By how much the first answers are right more often than the second, on the same examples: a difference of
    accuracies, whose interval is as above, e that of the paired difference. S and T need not be equal."""
    truth_N = np.asarray(truth_N, np.int64)
    right = [np.asarray(some, np.int64) == truth_N for some in (first_SN, second_TN)]
    difference_N = right[0].mean(0) - right[1].mean(0)
    error = float(difference_N.std(ddof=1)) / math.sqrt(len(truth_N))
    value = float(difference_N.mean())
    half = math.hypot(Z * error, *(_spread(some.mean(1)) for some in right))
    return Figure(value, len(truth_N), value - half, value + half)


def _spread(values_S: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of a mean over seeds; 0 for what has no seed."""
    seeds = len(values_S)
    if seeds < 2:
        return 0.0
    from scipy.special import stdtrit

    return float(stdtrit(seeds - 1, 0.975) * values_S.std(ddof=1) / math.sqrt(seeds))
