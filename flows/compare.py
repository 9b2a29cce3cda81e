"""`maskmill compare`: the evaluation sets of a recipe, asked of any models, side by side.

What depends on a vocabulary (masked cross-entropy) is not asked. What is finished is kept below the home, known by the
digests of the model, of the evaluation set and of its files: the same comparison again takes seconds, and one with a
further model asks only that.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import contenders
from flows.contenders import Contender
from flows.recipe import Recipe
from tasks import corpus, modalities
from tasks.artifacts import Manifest, Store, digest_of, finish_unit, finished_unit
from tasks.errors import MaskmillError, UsageError
from tasks.evaluate_config import SETS, settings
from tasks.report import Examined, Report
from tasks.report_sections import number
from tasks.report_words import baselines_of, best_of, called, listed, models_of, verdict
from tasks.results import UNTRAINED, Outcome

if TYPE_CHECKING:
    from tasks.subjects import Subject

VERSION = 1
"""Raise it when scores change that are asked in the same way."""
SEED = 0
"""Of the models before they learnt anything."""
FACTS = ("parameters", "ids in its vocabulary", "context in tokens")
"""What is said of a model."""
LEFT_OUT = (
    "Masked cross-entropy is left out: it compares models of one vocabulary only. Bits per byte compares models of all."
)
READ = (
    "Examples are looked for in the train split of the recipe's corpus. What models trained on other texts have read "
    "is not known."
)


def compare(specs: Sequence[str], recipe: Recipe, home: Path, store: Store, command: str = "") -> Report:
    """The report of some models, on the evaluation sets of a recipe.

    Raises UsageError for a model that is nowhere, or a recipe that asks nothing; what tasks raise.
    """
    models = contenders.find(specs, home, store)
    _refuse_others(models, recipe)
    config: Any = recipe.evaluate
    asked = settings(config)
    documents, remark = _corpus(recipe, store)
    if documents is None and not any(asked[key] for key in SETS):
        raise UsageError(f"The recipe {recipe.name} has no evaluation sets to ask. {remark}")
    from tasks.scoring import threads

    hardware = [VERSION, asked["device"], asked["threads"]]
    opened = _opener(models, asked["device"])
    with threads(asked["threads"]):
        about = {one.label: _about(one, opened, config.sentences, _scratch(home, *hardware)) for one in models}
        outcomes, left_out = _outcomes(
            config, asked, documents, models, opened, lambda *what: _scratch(home, *hardware, *what)
        )
    return Report(
        title=f"Comparison of {listed([one.label for one in models])}" if models[1:] else models[0].label,
        models=[Examined(one.label, one.label, about[one.label]["facts"]) for one in models],
        outcomes=outcomes,
        predictions={label: page["sentences"] for label, page in about.items()},
        remarks=[LEFT_OUT, *([remark] if remark else []), *([READ] if documents else []), *left_out, *_unread(about)],
        commands={"Compare again": command} if command else {},
    )


def _refuse_others(models: Sequence[Contender], recipe: Recipe) -> None:
    """Raises UsageError for models that no evaluation set can be read to: those sets are of text."""
    of = {f"{one.label} is a model of": modalities.held_by(one.folder) for one in models}
    for what, modality in (of | {f"the recipe {recipe.name} is of": recipe.modality}).items():
        if modality != modalities.TEXT:
            raise UsageError(
                f"{what} {modality}, and compare asks evaluation sets of text; the report of a version has its figures "
                "beside its baselines and the champion's: maskmill run with one register.name compares them."
            )


def _corpus(recipe: Recipe, store: Store) -> tuple[Manifest | None, str]:
    """The recipe's corpus where the store has it; else why bits per byte are left out."""
    try:
        found, why = store.inspect(corpus.identity(recipe.corpus, store.root))
    except MaskmillError as error:  # a source that is not here
        found, why = None, str(error).rstrip(".")
    if found:
        return found, ""
    return None, (
        f"Bits per byte and exposure are not measured: the corpus of {recipe.name} is not in the store ({why}); "
        f"maskmill run {recipe.name} makes it."
    )


def _outcomes(
    config: Any,
    asked: Mapping[str, Any],
    documents: Manifest | None,
    models: Sequence[Contender],
    opened: Callable[[str], "Subject"],
    scratch: Callable[..., Path],
) -> tuple[list[Outcome], list[str]]:
    """Of each task, asked of each model: where models are trained, also of each before it learnt anything."""
    from tasks import agenda, battery

    sets = [("pseudo_likelihood", [asked["pseudo_likelihood"], documents.digest])] if documents else []
    sets += [(key, entry) for key in SETS for entry in asked[key]]
    tasks = agenda.tasks_of(config, documents)
    seen = agenda.seen(tasks, documents, scratch("exposure", sets, documents.digest if documents else ""))
    keys = {one.label: one.digest[:16] for one in models}
    trained = {one.label: partial(opened, one.label) for one in models}
    untrained = {f"{UNTRAINED}_{one.label}": partial(_untrained, opened, one.label) for one in models}
    keys |= {label: f"untrained-{keys[label.removeprefix(f'{UNTRAINED}_')]}" for label in untrained}
    outcomes, left_out = list[Outcome](), list[str]()
    for task, (key, entry) in zip(tasks, sets, strict=True):
        subjects = trained | untrained if key in agenda.DOWNSTREAM else trained
        found, why = battery.run([task], subjects, seen, scratch(key, entry), keys)
        outcomes += found
        left_out += why
    return outcomes, left_out


def _untrained(opened: Callable[[str], "Subject"], label: str) -> "Subject":
    return opened(label).untrained(SEED)


def _opener(models: Sequence[Contender], device: str) -> Callable[[str], "Subject"]:
    """Opens a model by its label, once."""
    by_label = {one.label: one for one in models}

    @cache
    def opened(label: str) -> "Subject":
        from tasks.downloaded import downloaded
        from tasks.subjects import ours

        folder = by_label[label].folder
        try:
            return ours(folder, folder / "tokenizer.json", label, device)
        except (MaskmillError, ValueError, TypeError, AttributeError):  # another architecture, or saved in another way
            return downloaded(folder, label, device)

    return opened


def _about(
    model: Contender, opened: Callable[[str], "Subject"], sentences: Sequence[str], scratch: Path
) -> dict[str, Any]:
    """What a model is, and what it fills into the recipe's sentences; a unit of work."""
    unit = f"about-{model.digest[:16]}-{digest_of(list(sentences))[:16]}"
    found = finished_unit(scratch, unit)
    if found is None:
        from tasks.agenda import filled

        subject = opened(model.label)
        facts = dict(zip(FACTS, (subject.parameters, subject.vocabulary_size, subject.length), strict=True))
        found = finish_unit(scratch, unit, [], {"facts": facts, "sentences": filled(subject, sentences)})
    facts = {name: found["facts"][name] for name in FACTS}  # JSON keeps no order
    return found | {"facts": facts | {"from": model.origin, "digest of its files": model.digest}}


def _unread(about: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences that a model could not be asked."""
    return [
        f"{label} cannot read {page['text']!r}: it is longer than the context, or has no mask."
        for label, of in about.items()
        for page in of["sentences"]
        if not page["masks"]
    ]


def _scratch(home: Path, *what: Any) -> Path:
    """Where finished units lie that depend on all of this."""
    folder = home / "compare" / "units" / digest_of(list(what))[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# What is shown.


def place(report: Report, home: Path) -> Path:
    """Where the page lies that nobody named a file for."""
    name = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", one.label).strip("-.") or "model" for one in report.models)
    return home / "compare" / f"{name[:100]}.html"


def show(report: Report, file: Path) -> None:
    """The main figure of each set, on stdout, in 80 columns; plain where it is not a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 80
    models = models_of(report.outcomes)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column()
    for label in models:
        table.add_column(Text(label), justify="right")
    table.add_column("best baseline")
    table.add_column("n", justify="right")
    for one in report.outcomes:
        row, metric = one.figures[one.main], one.metrics[one.main]
        best, first = best_of(one, one.main, models), next(iter(baselines_of(row, metric)), None)
        cells = [Text(number(row.get(label), metric), "bold" if label in best else "") for label in models]
        beside = f"{called(first, report.names)} {number(row[first], metric)}" if first else "–"
        counts = {figure.n for figure in row.values()}
        table.add_row(Text(f"{one.title}, {metric.title}"), *cells, Text(beside), f"{max(counts):,}")
    console.print(table)
    console.print()
    console.print(Text(verdict(report.outcomes, report.names)))
    for remark in report.remarks:
        console.print(Text(remark, "dim"))
    console.print(Text(f"Report  {file}"), soft_wrap=True)
