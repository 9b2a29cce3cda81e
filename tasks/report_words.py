"""What a report of an evaluation says in words: is it good, and against what, and how sure is that?

Two figures are told apart where their 95 % intervals do not overlap; of figures without intervals the numbers decide.
That is careful: models that were asked the same questions differ more surely than their intervals show.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from .results import BASELINE, CHAMPION, MODEL, Exposure, Figure, Metric, Outcome, name_of

BETTER, EVEN, WORSE = "better", "even", "worse"
MEANINGS = {
    "masked cross-entropy": "−log of the probability that the model gave to the hidden token, on average (equation 5). "
    "It compares models of one vocabulary only.",
    "perplexity": "e to the cross-entropy: among how many equally likely tokens the model hesitates.",
    "top-1 accuracy": "how often the most probable token is the right one.",
    "top-5 accuracy": "how often a right token is among the five most probable ones.",
    "expected calibration error": "by how much the probability of the first guess misses how often it is right.",
    "bits per byte": "bits that the model needs for a byte of text, from its pseudo-likelihood: of these figures the "
    "one that compares different vocabularies.",
    "pseudo-likelihood": "−log of the probability of each token, hidden together with what follows it in its word "
    "(Kauf and Ivanova, 2023), on average.",
    "accuracy, mean over paradigms": "share of the pairs whose good sentence is the more probable one; a tie is wrong.",
    "accuracy": "share of right answers.",
    "mean reciprocal rank": "1 over the place of the best answer among all tokens, on average.",
    "matthews correlation": "agreement of answers and truth, from −1 to 1; 0 is chance, whatever the classes' sizes.",
    "macro-f1": "harmonic mean of precision and recall, averaged over the classes.",
}
"""How a metric's title begins, lower case -> what it means."""
BASELINES = {
    "uniform": "every token is equally likely.",
    "unigram": "guesses by how frequent tokens (in cloze: words) are in the train split, and looks at nothing else.",
    "bigram": "looks at the token to the left, and at nothing else.",
    "untrained": "the same model before its first step.",
    "chance": "guesses without looking.",
    "majority": "always gives the commonest answer: that of the training examples, in cloze that of the set itself.",
    "shorter": "takes the sentence with fewer characters.",
    "bag_of_words": "the words of a text and their pairs, with the same probe.",
    "word_form": "the commonest tag of each word form in the training examples.",
}
"""Label without its prefix -> what it is; a task's remarks, or the report, explain the others."""


def models_of(outcomes: Iterable[Outcome]) -> list[str]:
    """Labels of the models in the outcomes: all but the baselines, this model first."""
    labels = [label for one in outcomes for row in one.figures.values() for label in row]
    found = dict.fromkeys(label for label in labels if not label.startswith(BASELINE))
    return sorted(found, key=lambda label: (label != MODEL, label == CHAMPION))


def finite(figure: Figure | None) -> bool:
    """Is there a number to show?"""
    return figure is not None and math.isfinite(figure.value)


def ranked(row: Mapping[str, Figure], metric: Metric, labels: Iterable[str]) -> list[str]:
    """Labels that have a number, the best first; as they came where no direction is better."""
    found = [label for label in labels if finite(row.get(label))]
    sign = {"higher": -1, "lower": 1}.get(metric.better, 0)
    return sorted(found, key=lambda label: sign * row[label].value)


def baselines_of(row: Mapping[str, Figure], metric: Metric) -> list[str]:
    """Labels of the baselines, the hardest to beat first; those without a number last."""
    labels = [label for label in row if label.startswith(BASELINE)]
    best = ranked(row, metric, labels)
    return best + [label for label in labels if label not in best]


def comparable(one: Outcome, labels: Iterable[str]) -> list[str]:
    """Those that are ranked: a task names in details["not_comparable"] whose figures answer an easier question."""
    return [label for label in labels if label not in one.details.get("not_comparable", ())]


def best_of(one: Outcome, name: str, models: Sequence[str]) -> list[str]:
    """Labels of the models with the best figure of a metric; none where all have the same, or nothing is better."""
    row, metric = one.figures[name], one.metrics[name]
    order = ranked(row, metric, comparable(one, models))
    best = [label for label in order if row[label].value == row[order[0]].value]
    return best if metric.better and len(best) < len(order) else []


def against(figure: Figure, other: Figure, metric: Metric) -> str:
    """better, worse, or even: not told apart. "" where there is nothing to compare."""
    if not finite(figure) or not finite(other) or metric.better not in ("higher", "lower"):
        return ""
    low, high = ends(figure)
    other_low, other_high = ends(other)
    if low <= other_high and other_low <= high:
        return EVEN
    return BETTER if (figure.value > other.value) == (metric.better == "higher") else WORSE


def beats(one: Outcome, model: str, label: str) -> str:
    """How a model stands to another label by the main metric. By their difference on the same tokens or examples,
    which is surer, where it was measured."""
    apart = one.details.get("ahead", {}).get(label) if model == MODEL else None
    if (model, label) == (MODEL, CHAMPION):
        apart = one.details.get("difference_to_champion", apart)
    row, metric = one.figures[one.main], one.metrics[one.main]
    if apart and None not in (apart["low"], apart["high"]):
        below = apart["high"] < 0
        return EVEN if apart["low"] <= 0 <= apart["high"] else BETTER if below == (metric.better == "lower") else WORSE
    return against(row[model], row[label], metric)


def ends(figure: Figure) -> tuple[float, float]:
    """The interval; the number twice where it has none."""
    if figure.low is None or figure.high is None or not math.isfinite(figure.low + figure.high):
        return figure.value, figure.value
    return figure.low, figure.high


def gap(figure: Figure, other: Figure, metric: Metric) -> str:
    """How far two figures lie apart: "12.3 points", "3.047 nats"."""
    apart = abs(figure.value - other.value)
    if metric.unit == "%":
        return f"{100 * apart:.1f} points"
    unit = metric.unit.partition(",")[0]
    return f"{apart:.3f} {unit.split(' per ')[0] if unit.startswith('nats') else unit}".rstrip()


def unit_of(metric: Metric) -> str:
    """What is said of a metric beside its title; "" of per cents, and where the title says it."""
    return "" if metric.unit == "%" else metric.unit.removeprefix(metric.title).strip(", ")


def called(label: str, names: Mapping[str, str]) -> str:
    """A label for people: the name that the report gives a model, or the general one."""
    return names.get(label, name_of(label))


def verdict(outcomes: Sequence[Outcome], names: Mapping[str, str]) -> str:
    """The answer in one sentence."""
    models = [label for label in models_of(outcomes) if label != CHAMPION]
    if not outcomes or not models:
        return "Nothing was measured."
    return _alone(outcomes, models[0], names) if len(models) == 1 else _several(outcomes, models, names)


def _alone(outcomes: Sequence[Outcome], model: str, names: Mapping[str, str]) -> str:
    """Of one model: hidden tokens against each baseline, then how it stands to the best baseline of each other set."""
    head = next((one for one in outcomes if one.kind == "intrinsic"), outcomes[0])
    found: dict[str, list[str]] = {BETTER: [], EVEN: [], WORSE: []}
    for one in outcomes:
        best = next(iter(baselines_of(one.figures[one.main], one.metrics[one.main])), None)
        alike = one is head or one.kind == "intrinsic"  # other mask rates tell the same
        if best and not alike and model in comparable(one, one.figures[one.main]) and (how := beats(one, model, best)):
            found[how].append(one.title if how == BETTER else f"{one.title} ({called(best, names)})")
    words = {
        BETTER: "Above every baseline: {}",
        EVEN: "Not told apart from the best baseline: {}",
        WORSE: "Below the best baseline: {}",
    }
    said = [f"{capital(standing(head, model, names))} ({head.title})"]
    return ". ".join([*said, *(words[how].format(listed(sets)) for how, sets in found.items() if sets)]) + "."


def _several(outcomes: Sequence[Outcome], models: Sequence[str], names: Mapping[str, str]) -> str:
    leads: dict[str, list[str]] = {}
    for one in outcomes:
        best = ranked(one.figures[one.main], one.metrics[one.main], comparable(one, models))
        if len(best) > 1 and one not in close(outcomes, models):
            leads.setdefault(best[0], []).append(one.title)
    said = [f"on {listed(titles)} {called(label, names)} is best" for label, titles in leads.items()]
    near = [one.title for one in close(outcomes, models)]
    best = [capital("; ".join(said))] if said else []
    best += [f"On {listed(near)} the best is not told apart from the next"] if near else []
    return ". ".join(best or ["The models share no figure"]) + "."


def close(outcomes: Iterable[Outcome], models: Sequence[str]) -> list[Outcome]:
    """The sets on which the best model and the next are not told apart."""
    found = []
    for one in outcomes:
        row, metric = one.figures[one.main], one.metrics[one.main]
        best = ranked(row, metric, comparable(one, models))
        if len(best) > 1 and against(row[best[0]], row[best[1]], metric) == EVEN:
            found.append(one)
    return found


def standing(one: Outcome, model: str, names: Mapping[str, str]) -> str:
    """A model against each baseline by the main metric of a set: "better than unigram by 3.047 nats"."""
    row, metric = one.figures[one.main], one.metrics[one.main]
    if model not in row or not finite(row[model]):
        return "no figure"
    labels = [*([CHAMPION] if CHAMPION in row and model != CHAMPION else []), *baselines_of(row, metric)]
    said: dict[str, list[str]] = {}
    for label in labels:
        how = beats(one, model, label)
        name = f"{'the ' if label == CHAMPION else ''}{called(label, names)}"
        if how:
            far = name if how == EVEN else f"{name} by {gap(row[model], row[label], metric)}"
            said.setdefault(how, []).append(far)
    words = {BETTER: "better than", EVEN: "not told apart from", WORSE: "worse than"}
    return ", ".join(f"{words[how]} {listed(said[how])}" for how in words if how in said) or "nothing to compare with"


def closeness(one: Outcome, models: Sequence[str], names: Mapping[str, str]) -> str:
    """Of several models: which is best by the main metric, and which are not told apart from it."""
    row, metric = one.figures[one.main], one.metrics[one.main]
    best = ranked(row, metric, comparable(one, models))
    if len(best) < 2 or not metric.better:
        return ""
    near = [called(label, names) for label in best[1:] if against(row[best[0]], row[label], metric) == EVEN]
    first = f"{called(best[0], names)} is best"
    return f"{first}, but not told apart from {listed(near)}." if near else f"{first}, and told apart from all others."


def exposed(exposure: Exposure | None, remarks: Sequence[str]) -> str:
    """What of the set the training text holds, in a sentence."""
    if exposure is None:
        why = next((remark for remark in remarks if "not measured" in remark), "")
        return why or "Whether the train split holds its examples was not measured."
    short = exposure.examples - exposure.looked_for
    if not exposure.looked_for:
        return f"None of its {exposure.examples:,} examples has 13 words, so none was looked for in the train split."
    few = f" ({short:,} shorter ones are not looked for)" if short > 0 else ""
    found = f"{exposure.found:,} share" if exposure.found != 1 else "1 shares"
    return (
        f"Of {exposure.looked_for:,} examples with 13 words or more, {found if exposure.found else 'none shares'} "
        f"13 words in a row with the train split{few}."
    )


def meaning(metric: Metric) -> str:
    """A metric in one line."""
    title = metric.title.lower()
    known = next((said for word, said in MEANINGS.items() if title.startswith(word)), "")
    direction = f"{metric.better} is better" if metric.better else ""
    return " ".join(filter(None, [known, capital(f"{direction}.") if direction else ""]))


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "nothing"


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
