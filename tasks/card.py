"""The model card: what it is, how good it is and against what, what it was made from. Same inputs, same bytes.

Tables are narrow, because MLflow's page shows them without style.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import modalities
from .artifacts import Manifest
from .guards import sentences
from .report import Examined, Report, markdown
from .results import MODEL, NAMES, outcome_of
from .sheet import in_markdown


def card(name: str, parents: Mapping[str, Manifest]) -> str:
    """The card of a model, from the manifests of corpus, vocabulary, shards, pretrain and evaluate by stage.

    What is said of the modality is the modality's to say: see text_front.py.
    """
    front = modalities.front(parents["vocabulary"].facts)
    evaluate = parents["evaluate"]
    parts = [
        front.header(parents["vocabulary"].facts),
        f"# {name}",
        front.about(parents),
        "## How good it is",
        _scores(evaluate),
        front.measured(evaluate.facts),
        *_tasks(evaluate.facts, front),
        front.predictions(evaluate.facts["predictions"]),
        "## What it was made from",
        _data(parents["corpus"], front.learnt(parents), parents["shards"], parents["pretrain"].config),
        "## How it was trained",
        _settings(parents["pretrain"]),
        "## Use",
        front.use(name, parents),
        "## Limits",
        front.limits(parents),
        "## Digests",
        "\n".join(f"- {name} `{digest}`" for name, digest in lineage(parents).items()),
    ]
    return "\n\n".join(parts) + "\n"


def lineage(parents: Mapping[str, Manifest]) -> dict[str, str]:
    """Everything that a model goes back to: digests of its parents, and of what else its weights were made from.

    That is shards of shorter rows ("shards_128"), and the run that it was forked from ("fork").
    """
    return {stage: manifest.digest for stage, manifest in parents.items()} | {
        name: digest for name, digest in parents["pretrain"].identity.inputs.items() if name not in parents
    }


def origin(command: str, commit: str = "") -> str:
    """How the model is made again, for its page in the registry: the artifact itself knows no command and no commit."""
    code = f", with the code of commit `{commit}`" if commit else ""
    return f"\nMake it again: `{command}`{code}\n" if command else ""


def _scores(evaluate: Manifest) -> str:
    facts, metrics = evaluate.facts, evaluate.facts["metrics"]
    intervals = _intervals(evaluate)
    lines = ["| masked | model | nats | top-1 | top-5 |", "|--:|---|--:|--:|--:|"]
    for rate in facts["rates"]:
        for prefix, label in NAMES.items():
            at = f"{prefix}/rate_{rate}"
            if f"{at}/masked_cross_entropy" in metrics:
                top1, top5 = metrics[f"{at}/top1_accuracy"], metrics[f"{at}/top5_accuracy"]
                loss = f"{metrics[f'{at}/masked_cross_entropy']:.3f}{intervals.get(at, '')}"
                lines.append(f"| {rate} | {label} | {loss} | {top1:.1%} | {top5:.1%} |")
    counted = ", ".join(f"{number:,} at {rate}" for rate, number in facts["masked"].items())
    return "\n".join([*lines, "", f"n (masked tokens): {counted}"])


def _intervals(evaluate: Manifest) -> dict[str, str]:
    """ "test/rate_0.3" -> the interval of its cross-entropy, in brackets; the report alone knows them."""
    if "report.json" not in evaluate.files:
        return {}
    outcomes = json.loads(evaluate.whole("report.json").read_bytes()).get("outcomes", [])
    found = {}
    for one in outcomes:
        for label, figure in one["figures"].get("masked_cross_entropy", {}).items():
            if figure and figure["low"] is not None and figure["high"] is not None:
                found[f"{label}/{one['task']}"] = f" ({figure['low']:.3f} to {figure['high']:.3f})"
    return found


def _tasks(facts: Mapping[str, Any], front: Any) -> Iterator[str]:
    """What it was tried on besides held-out tokens, with baselines, n and what of it stands in the train split."""
    outcomes = [outcome_of(page) for page in facts.get("tasks", [])]
    if outcomes:
        yield markdown(Report("", [Examined(MODEL, NAMES[MODEL])], outcomes)).strip()
    yield "All figures, with intervals, classes and pictures: `report.html` among the artifacts of the run."
    for one in outcomes:
        yield from front.exposed(one)


def code(text: str) -> str:
    """Text that Markdown shows as it is."""
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text or ' '}{fence}"


def _data(corpus: Manifest, vocabulary: Sequence[str], shards: Manifest, pretrain: Mapping[str, Any]) -> str:
    counts, facts = corpus.counts, shards.facts
    train = facts["splits"]["train"]
    reasons = [(name.removeprefix("rejected_"), n) for name, n in counts.items() if name.startswith("rejected_") and n]
    return "\n".join(
        [
            *_sources(corpus),
            f"- {counts.get('documents_kept', 0):,} documents, {counts.get('bytes_kept', 0):,} bytes; rejected: "
            + (", ".join(f"{number:,} {reason}" for reason, number in reasons) or "none"),
            *vocabulary,
            f"- {train['tokens']:,} tokens to train on, in rows of {facts['length']}"
            + _shorter(pretrain.get("lengths", {})),
            f"- masks: {facts['rate']} of each segment's tokens, exactly, {_policy(facts)}, shown as "
            f"{facts['corruption']}, sampler {facts['sampler']['name']} version {facts['sampler']['version']}, "
            f"seed {facts['seed']}",
        ]
    )


def _shorter(lengths: Mapping[str, Any]) -> str:
    """What rows came before the main ones, if there were any: ", first of 128 until 0.5 of the run"."""
    each = zip(lengths.get("lengths", ()), lengths.get("at", ()))
    words = ", then ".join(f"of {length} until {share} of the run" for length, share in each)
    return f", first {words}" if words else ""


def _policy(shards: Mapping[str, Any]) -> str:
    name = shards.get("policy", "uniform")
    return f"in spans of {shards['span']} on average" if name == "span" else name


def _sources(corpus: Manifest) -> Iterator[str]:
    """A line each. Names only: where a source lies on somebody's disk is nobody's business."""
    books = {page["source"]: page for page in corpus.facts.get("books", [])}
    for name, licence in _licences(corpus).items():
        kept = books.get(name, {})
        size = f", {kept['documents_kept']:,} documents, {kept['bytes_kept']:,} bytes" if kept else ""
        shown = name.rstrip("/").rpartition("/")[2]
        yield f"- source {code(shown)}{size}; licence: {in_markdown(licence) or 'not noted'}"


def _licences(corpus: Manifest) -> dict[str, str]:
    """Name of each source -> its note, "" without."""
    sources = corpus.facts.get("sources", [])
    each = [(it, "") if isinstance(it, str) else (it.get("name", ""), it.get("licence", "")) for it in sources]
    return {str(name) or "unnamed": str(licence) for name, licence in each}


def without_licence(corpus: Manifest) -> list[str]:
    """Names of the sources that came without a note of their licence."""
    return [name.rstrip("/").rpartition("/")[2] for name, licence in _licences(corpus).items() if not licence]


def _settings(pretrain: Manifest) -> str:
    lines = ["| setting | |", "|---|--:|"]
    config = {name: value for name, value in pretrain.config.items() if name not in ("mask_rates", "lengths")}
    rates = pretrain.config.get("mask_rates") or {}
    config["mask_rates"] = " ".join([rates.get("schedule", "constant"), " → ".join(rates.get("rates", ()))]).strip()
    if rates.get("at"):
        config["mask_rates"] += f" at {', '.join(rates['at'])}"
    if not config.get("fork"):
        config.pop("fork", None)
    if not (config.get("batch_warmup") or {}).get("start"):
        config.pop("batch_warmup", None)
    chosen = pretrain.facts.get("chosen", {})
    if config.get("compile") == "auto" and "compiled" in chosen:
        config["compile"] = f"auto: {'compiled' if chosen['compiled'] else 'not compiled'}"
    lines += [f"| {name} | {value} |" for name, value in sorted(_flat(config))]
    steps, tokens = pretrain.facts["steps"], pretrain.facts["tokens"]
    fired = sentences(pretrain.facts.get("guards"))
    if pretrain.facts.get("at_unigram_level"):
        fired.append("At its end the loss was at the unigram level: the model knows token frequencies and no more.")
    trouble = ["", f"**Something went wrong on the way.** {' '.join(fired)}"] if fired else []
    return "\n".join([f"{steps:,} steps, {tokens:,} tokens.", *trouble, "", *lines])


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names, so that the table stays narrow."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
