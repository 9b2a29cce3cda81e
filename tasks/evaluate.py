"""Stage 5, evaluate: weights -> report. Is it good, and against what?

On the test split, with draws that are frozen for all models of one vocabulary: masked cross-entropy and what goes with
it at several mask rates (intrinsic.py). Masks are nested, so the 15 % draw hides a part of what the stored one hides.
And what the modality's agenda holds (agenda.py: bits per byte and evaluation sets). Beside every score stand those of
its baselines, of the model before training and of the champion where there is one. Hidden positions always show
[MASK], whatever the policy in training was: that is the question a user asks. What the gate will need of it, sums by
document, class and passage, goes into scores.arrow (evidence.py). Everything is float32; the last digits depend on the
number of threads, which is therefore part of the identity.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import evidence, modalities
from .artifacts import (
    Built,
    Identity,
    Manifest,
    Store,
    Workspace,
    check_parent,
    digest_of,
    finish_unit,
    finished_unit,
    write_atomic,
)
from .curve import draw, points_of
from .errors import NumericError
from .evaluate_config import EvaluateConfig
from .keys import permutation
from .masking import EVALUATION_SEED, fraction
from .overlap import copies
from .progress import progress, say
from .report import DENSITY, LOSS, Curve, Examined, Report, page
from .results import (
    ALONE,
    BIGRAM,
    CHAMPION,
    MODEL,
    NAMES,
    NEIGHBOUR,
    PLACE,
    UNIGRAM,
    UNTRAINED,
    Outcome,
    metrics_of,
    outcome_of,
)

if TYPE_CHECKING:
    import numpy as np

    from .scoring import Scorer
    from .subjects import Subject

__all__ = ["EvaluateConfig", "evaluate", "identity", "summary"]

STAGE = "evaluate"
VERSION = 4
LINES = (UNIGRAM, BIGRAM, PLACE, NEIGHBOUR, UNTRAINED, ALONE, CHAMPION)
"""Labels whose masked cross-entropy is a level line in the learning curve."""


def identity(
    config: Any,
    corpus_digest: str,
    vocabulary_digest: str,
    shards_digest: str,
    pretrain_digest: str,
    champion_digest: str | None,
    alone_digest: str | None = None,
) -> Identity:
    """What the report is a function of. A model is not compared with itself: such a champion counts as none.

    config      EvaluateConfig, or what another modality has in its place

    Raises UsageError for an evaluation set whose file is not there.
    """
    inputs = {"corpus": corpus_digest, "vocabulary": vocabulary_digest}
    inputs |= {"shards": shards_digest, "pretrain": pretrain_digest}
    if champion_digest not in (None, pretrain_digest):
        inputs["champion"] = str(champion_digest)
    if alone_digest:
        inputs["alone"] = alone_digest
    return Identity(STAGE, VERSION, modalities.beside(config).settings(config), inputs)


def evaluate(
    config: Any,
    corpus: Manifest,
    vocabulary: Manifest,
    shards: Manifest,
    pretrain: Manifest,
    champion: Manifest | None,
    store: Store,
    alone: Manifest | None = None,
) -> tuple[Manifest, bool]:
    """Scores the model, or finds its report. A killed evaluation goes on with the task and model that it was at.

    Args:
        config: EvaluateConfig, or what another modality has in its place.
        champion: the pretrain manifest of the model to beat; None where there is none. Masked scores of one with
            another vocabulary cannot be compared and are left out; those of texts can, where the store has that.
        alone: the pretrain manifest of a model that was trained on this modality alone, where the model was on two.
    Raises:
        UsageError: a test split in which nothing is hidden, a sentence beyond the context, another vocabulary than the
        shards' or the weights', an evaluation set that cannot be used. NumericError: a score that is not finite.
        DataError: damaged shards or weights.
    """
    for made in (shards, pretrain):
        check_parent(STAGE, made, vocabulary)
    digests = (corpus.digest, vocabulary.digest, shards.digest, pretrain.digest)
    this = identity(config, *digests, *(one.digest if one else None for one in (champion, alone)))
    if champion and "champion" not in this.inputs:
        champion = None
    build = _Build(this, config, corpus, vocabulary, shards, pretrain, champion, store, alone)
    return store.make(this, build, libraries=("torch", "numpy", "tokenizers", "scikit-learn", "matplotlib"))


@dataclass
class _Build:
    this: Identity
    config: Any
    corpus: Manifest
    vocabulary: Manifest
    shards: Manifest
    pretrain: Manifest
    champion: Manifest | None
    store: Store
    alone: Manifest | None = None

    def __call__(self, workspace: Workspace) -> Built:
        from .scoring import threads

        with threads(self.this.config["threads"]):
            model = self._subject(self.pretrain, self.vocabulary, MODEL)
            predictions = self.agenda.predictions(self.config, model)
            pictures = self.agenda.pictures(self.config, model, self.shards, workspace.folder)
            rows, intrinsic = self._intrinsic(workspace.scratch, model)
            self._check(intrinsic)
            found, left_out = self._tasks(workspace.scratch, model)
            outcomes = [*intrinsic, *found]
        self._check(outcomes)
        facts = self._facts(outcomes, rows, predictions) | {"left_out": left_out}
        report = facts | {"outcomes": [one.as_json() for one in outcomes]}
        write_atomic(workspace.folder / "report.json", json.dumps(report, indent=1, sort_keys=True).encode() + b"\n")
        write_atomic(workspace.folder / "report.html", page(self._report(outcomes, facts, pictures)).encode())
        write_atomic(workspace.folder / "curve.png", self._curve(facts["metrics"]))
        units = [unit for one in outcomes for unit in one.units]
        evidence.write(workspace.folder / evidence.FILE, units, self._about(outcomes, facts["test"]["digest"]))
        say("evaluate: " + summary(facts["metrics"], facts["shards_rate"]))
        return Built({"rows": len(rows), **{f"masked_rate_{rate}": n for rate, n in facts["masked"].items()}}, facts)

    def _facts(
        self, outcomes: Sequence[Outcome], rows: Sequence[int], predictions: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """What other stages and people's pages read: numbers by name, and of each task what it is."""
        metrics = {name: value for outcome in outcomes for name, value in metrics_of(outcome).items()}
        masked = {one.task.removeprefix("rate_"): one.counts["masked"] for one in outcomes if one.kind == "intrinsic"}
        return {
            "metrics": metrics,
            "rates": list(masked),
            "shards_rate": self.shards.facts["rate"],
            "masked": masked,
            "tasks": [one.without_tables().as_json() for one in outcomes if one.kind != "intrinsic"],
            "test": {"digest": self._test_digest(rows), "rows": len(rows)},
            "unigram_smoothing": "add-one over ordinary tokens",
            "champion": self._champion_fact(),
            "predictions": list(predictions),
        }

    def _about(self, outcomes: Sequence[Outcome], test: str) -> dict[str, Any]:
        """What the scores for the gate are of."""
        changed = [label for one in outcomes for label in one.details.get("not_comparable", ())]
        models = {MODEL: self.pretrain} | ({CHAMPION: self.champion} if self.champion else {})
        return {
            "test": test,
            "rate": self.shards.facts["rate"],
            "copies": self._copies(),
            "models": {
                label: {
                    "pretrain": one.digest,
                    "vocabulary": self._read_with(one),
                    "changes_text": label in changed,
                }
                for label, one in models.items()
            },
        }

    def _copies(self) -> dict[str, Any]:
        """What of the test set the model was trained on, here or in the runs that it goes on from."""
        corpora, run = {self.corpus.digest: self.corpus}, self.pretrain
        while fork := run.identity.inputs.get("fork"):
            before = self.store.with_digest("pretrain", fork)
            rows = self.store.with_digest("shards", before.identity.inputs.get("shards", "")) if before else None
            text = self.store.with_digest("corpus", rows.identity.inputs.get("corpus", "")) if rows else None
            if before is None or text is None:
                return {"unknown": "the store does not have the corpus of the run that it was forked from any more"}
            corpora[text.digest], run = text, before
        return copies(self.corpus, list(corpora.values())[1:])

    def _check(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            for label, figure in outcome.figures[outcome.main].items():
                if not math.isfinite(figure.value):
                    raise NumericError(
                        f"evaluate: {label}/{outcome.task}/{outcome.main} is {figure.value}: the weights in "
                        f"{self.pretrain.folder} are of no use."
                    )

    # Models.

    @property
    def agenda(self) -> Any:
        """What the modality knows of an evaluation."""
        return modalities.module(modalities.of(self.vocabulary.facts).agenda)

    def _counts(self) -> "np.ndarray":
        import numpy as np

        return np.load(self.shards.whole("unigrams.npy"), allow_pickle=False)  # type: ignore[no-any-return]

    def _subject(self, pretrain: Manifest, vocabulary: Manifest, label: str) -> "Subject":
        found: Subject = self.agenda.subject(pretrain, vocabulary, label, self.this.config["device"], self._counts())
        return found

    def _subjects(self, model: "Subject") -> dict[str, "Callable[[], Subject]"]:
        """By label; the champion only where the vocabulary that it reads with is in the store."""
        seed = self.pretrain.facts["initial_seed"]
        found: dict[str, Callable[[], Subject]] = {MODEL: lambda: model, UNTRAINED: lambda: model.untrained(seed)}
        if self.champion and (vocabulary := self._champion_vocabulary()):
            champion = self.champion
            found[CHAMPION] = lambda: self._subject(champion, vocabulary, CHAMPION)
        if alone := self.alone:
            found[ALONE] = lambda: self._subject(alone, self.vocabulary, ALONE)
        return found

    def _read_with(self, weights: Manifest) -> str:
        """Digest of the vocabulary that a model reads with: this one, where it is one of its two."""
        mine, inputs = self.vocabulary.digest, weights.identity.inputs
        return mine if mine == inputs.get("beside_vocabulary") else inputs["vocabulary"]

    def _champion_vocabulary(self) -> Manifest | None:
        wanted = self._read_with(self.champion) if self.champion else ""
        if wanted == self.vocabulary.digest:
            return self.vocabulary
        other = self.store.with_digest("vocabulary", wanted)
        same = other and modalities.name_of(other.facts) == modalities.name_of(self.vocabulary.facts)
        return other if same else None

    def _comparable(self) -> bool:
        """May the champion's masked scores stand beside the model's: are they of the same tokens, and can it read
        the rows?"""
        if self.champion is None or self._read_with(self.champion) != self.vocabulary.digest:
            return False
        sizes = self.champion.facts[modalities.face(self.champion, self.vocabulary.digest)]
        return bool(sizes["length"] >= self.shards.facts["length"])

    def _champion_fact(self) -> dict[str, Any] | None:
        if self.champion is None:
            return None
        reason = ""
        if self._read_with(self.champion) != self.vocabulary.digest:
            reason = "it has another vocabulary"
            reason += "" if self._champion_vocabulary() else ", which the store does not have, or of other documents"
        elif not self._comparable():
            reason = "its context is shorter than the rows"
        return {"pretrain": self.champion.digest, "scored": self._comparable(), "reason": reason}

    # Tasks.

    def _intrinsic(self, scratch: Path, model: "Subject") -> tuple[list[int], list[Outcome]]:
        """The rows that were scored, and an outcome for each rate."""
        import numpy as np

        from . import intrinsic
        from .batches import ShardReader

        reader = ShardReader(self.shards, "test", payload="payload" in self.shards.facts)
        rows = np.sort(permutation(EVALUATION_SEED, 0, reader.rows)[: self.config.max_rows or None])
        rates, numbers = self._rates(), [int(row) for row in rows]
        found = finished_unit(scratch, "intrinsic")
        if found is None:
            scorers, remark = self.agenda.baselines(self.shards, self._can_be_hidden())
            scorers = self._scorers(model) | scorers
            with progress("evaluate", total=len(rows) * len(rates), unit="rows") as bar:
                strata = self.agenda.strata(reader, self._counts())
                asked = intrinsic.asked(reader, self.shards, rows, strata, self.corpus)
                remarks = [remark, *self.agenda.remarks(model)]
                each = intrinsic.outcomes(asked, rates, scorers, self.config.rows_per_batch, bar.advance, remarks)
            # One text, since a unit sorts its keys, and the report shows labels in their order.
            page = json.dumps([one.as_json() for one in each])
            units = [unit for one in each for unit in one.units]
            evidence.write(scratch / evidence.FILE, units, {})
            found = finish_unit(scratch, "intrinsic", [scratch / evidence.FILE], {"outcomes": page})
        each = [outcome_of(page) for page in json.loads(found["outcomes"])]
        own = f"rate_{self.shards.facts['rate']}"
        kept, _ = evidence.read_units(scratch / evidence.FILE)
        return numbers, [replace(one, units=kept) if one.task == own else one for one in each]

    def _scorers(self, model: "Subject") -> dict[str, "Scorer"]:
        facts, device = self.pretrain.facts, self.this.config["device"]
        untrained = self.agenda.untrained(
            model,
            facts[modalities.face(self.pretrain, self.vocabulary.digest)],
            facts["initial_seed"],
            self._counts(),
            device,
        )
        found = {MODEL: self.agenda.scorer(model), UNTRAINED: untrained}
        if self.champion and self._comparable():
            found[CHAMPION] = self.agenda.scorer(self._subject(self.champion, self.vocabulary, CHAMPION))
        if self.alone:
            found[ALONE] = self.agenda.scorer(self._subject(self.alone, self.vocabulary, ALONE))
        return found

    def _tasks(self, scratch: Path, model: "Subject") -> tuple[list[Outcome], list[str]]:
        """An outcome for each task, and a sentence for each that is left out."""
        from . import battery

        tasks = self.agenda.tasks_of(self.config, self.corpus, self.shards, self._can_be_hidden())
        return battery.run(tasks, self._subjects(model), self.agenda.seen(tasks, self.corpus, scratch), scratch)

    def _rates(self) -> list[str]:
        """The rates asked for and that of the shards, each once and in order, whatever way it is written."""
        rates = {fraction(rate): rate for rate in self.config.rates}
        rates[fraction(self.shards.facts["rate"])] = self.shards.facts["rate"]
        return [rates[p] for p in sorted(rates)]

    def _can_be_hidden(self) -> list[list[int]]:
        """Half-open ranges of the ids that a text can have: the ordinary ones, and [UNK] where the model says it."""
        ranges = [list(entry) for entry in self.shards.facts["vocabulary"]["ordinary"]]
        unknown = self.vocabulary.facts["special_ids"]["unk"]
        return [*ranges, [unknown, unknown + 1]] if self.vocabulary.facts.get("unknown") else ranges

    def _test_digest(self, rows: Sequence[int]) -> str:
        """What two models must share for their scores to be compared: tokens, draws, rows, vocabulary."""
        files = {name: entry.sha256 for name, entry in self.shards.files.items() if name.startswith("test-")}
        return digest_of([self.vocabulary.digest, files, list(rows), EVALUATION_SEED])

    # Pictures.

    def _report(self, outcomes: Sequence[Outcome], facts: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Report:
        pretrain, rate = self.pretrain.facts, facts["shards_rate"]
        what = {"parameters": pretrain["parameters"], "tokens trained on": pretrain["tokens"]}
        what |= {f"{made.stage} digest": made.digest for made in (self.pretrain, self.shards, self.corpus)}
        models = [Examined(MODEL, NAMES[MODEL], what)]
        if self.champion:
            models.append(Examined(CHAMPION, NAMES[CHAMPION], {"pretrain digest": self.champion.digest}))
        losses = next(one for one in outcomes if one.task == f"rate_{rate}").figures["masked_cross_entropy"]
        levels = {label: losses[label] for label in LINES if label in losses and not self._of_payload}
        curve = Curve(points_of(self.pretrain, self.vocabulary), rate, levels, DENSITY if self._of_payload else LOSS)
        reason = (facts["champion"] or {}).get("reason", "")
        remarks = [f"The champion's masked scores are left out: {reason}."] if reason else []
        remarks += facts["left_out"]
        said = {"documents": self.agenda.DOCUMENTS, "baselines": self.agenda.BASELINES, "pictures": pictures}
        given: dict[str, Any] = {"predictions": {MODEL: facts["predictions"]}, "remarks": remarks, **said}
        return Report("Evaluation", models, outcomes, curve, **given)

    @property
    def _of_payload(self) -> bool:
        """Whether the loss of training is not of tokens, so that no score of tokens belongs beside it."""
        sizes = self.pretrain.facts[modalities.face(self.pretrain, self.vocabulary.digest)]
        return bool(sizes.get("target") == "payload")

    def _lines(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Level lines of the curve: label for people -> masked cross-entropy at the rate of the shards."""
        if self._of_payload:
            return {}
        name = f"rate_{self.shards.facts['rate']}/masked_cross_entropy"
        return {NAMES[label]: metrics[f"{label}/{name}"] for label in LINES if f"{label}/{name}" in metrics}

    def _curve(self, metrics: Mapping[str, float]) -> bytes:
        return draw(points_of(self.pretrain, self.vocabulary), self._lines(metrics), self.shards.facts["rate"])


def summary(metrics: Mapping[str, float], rate: str) -> str:
    """One line: the model's masked cross-entropy at a rate beside its baselines'."""
    parts = []
    for label in (MODEL, *LINES):
        loss = metrics.get(f"{label}/rate_{rate}/masked_cross_entropy")
        if loss is not None:
            parts.append(f"{NAMES[label] if label != MODEL else MODEL} {loss:.3f}")
    return f"masked cross-entropy at rate {rate}: " + ", ".join(parts) + " nats"
