"""Stage 5, evaluate: weights -> report. Is it good, and against what?

On the test split, with draws that are frozen for all models of one vocabulary: masked cross-entropy (nats per masked
token), perplexity, top-1 and top-5 accuracy, at 15 % and at the shards' rate. Masks are nested, so the 15 % draw hides
a part of what the stored one hides. Beside every score stand those of the unigram distribution, of the model before
training, and of the champion where there is one. Hidden positions always show [MASK], whatever the policy in training
was: that is the question a user asks. Everything is float32; the last digits depend on the number of threads, which is
therefore part of the identity.
"""

import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .artifacts import Built, Identity, Manifest, Store, Workspace, check_parent, digest_of, write_atomic
from .errors import DataError, NumericError, UsageError
from .hardware import device_kind, thread_count
from .keys import permutation
from .masking import EVALUATION_SEED, fraction, spelling
from .progress import progress, say

STAGE = "evaluate"
VERSION = 2
NOT_IDENTITY: set[str] = set()

MODEL, UNIGRAM, UNTRAINED, CHAMPION = "test", "baseline_unigram", "baseline_untrained", "champion"
"""First part of the metric names: the model itself goes by the split."""
MASK = "[MASK]"
"""In a sentence of the recipe, whatever the vocabulary calls it."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What is asked of the model."""

    rates: tuple[str, ...] = ("0.15",)
    """Mask rates to score at; the rate of the shards always comes along."""
    sentences: tuple[str, ...] = (
        "She opened the [MASK] and looked at him.",
        "It was the [MASK] of the day.",
        "Return a list of all the [MASK] in the file.",
    )
    """Texts with a [MASK], whose top-5 predictions go into the report."""
    rows_per_batch: int = 64
    """Rows scored at a time; changes digits behind the fifth only."""
    max_rows: int = 0
    """Rows of the test split to score, drawn evenly from it; 0 takes all."""
    device: str = "cpu"
    """auto, cpu or cuda."""
    threads: int = 0
    """CPU threads; 0 takes all cores. Part of the identity: sums are split by thread."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "rates", tuple(spelling(rate) for rate in self.rates))
        except UsageError as error:
            raise UsageError(f"evaluate.rates: {error}") from None
        if self.rows_per_batch < 1 or self.max_rows < 0:
            raise UsageError("evaluate.rows_per_batch must be at least 1, and evaluate.max_rows at least 0 (all rows).")
        for text in self.sentences:
            if MASK not in text:
                raise UsageError(f"evaluate.sentences: {text!r} holds no {MASK}; put one where a token is missing.")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UsageError(f"evaluate.sentences: {text!r} has half of a surrogate pair; give whole characters.")


def identity(
    config: EvaluateConfig,
    vocabulary_digest: str,
    shards_digest: str,
    pretrain_digest: str,
    champion_digest: str | None,
) -> Identity:
    """What the report is a function of. A model is not compared with itself: such a champion counts as none."""
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_IDENTITY}
    settings |= {"device": device_kind(config.device), "threads": thread_count(config.threads)}
    inputs = {"vocabulary": vocabulary_digest, "shards": shards_digest, "pretrain": pretrain_digest}
    if champion_digest not in (None, pretrain_digest):
        inputs["champion"] = str(champion_digest)
    return Identity(STAGE, VERSION, settings, inputs)


def evaluate(
    config: EvaluateConfig,
    vocabulary: Manifest,
    shards: Manifest,
    pretrain: Manifest,
    champion: Manifest | None,
    store: Store,
) -> tuple[Manifest, bool]:
    """Scores the model, or finds its report.

    Args:
        champion: the pretrain manifest of the model to beat; None where there is none. One of another vocabulary is
            named in the report and not scored: masked scores over different tokens cannot be compared.
    Raises:
        UsageError: a test split in which nothing is hidden, a sentence beyond the context, another vocabulary than the
        shards' or the weights'. NumericError: a score that
        is not finite. DataError: damaged shards or weights.
    """
    for made in (shards, pretrain):
        check_parent(STAGE, made, vocabulary)
    this = identity(config, vocabulary.digest, shards.digest, pretrain.digest, champion.digest if champion else None)
    if champion and "champion" not in this.inputs:
        champion = None
    build = _Build(this, vocabulary, shards, pretrain, champion)
    return store.make(this, build, libraries=("torch", "numpy", "tokenizers", "matplotlib"))


@dataclass
class _Build:
    this: Identity
    vocabulary: Manifest
    shards: Manifest
    pretrain: Manifest
    champion: Manifest | None

    def __call__(self, workspace: Workspace) -> Built:
        from .scoring import load_model, threads

        config = self.this.config
        with threads(config["threads"]):
            model = load_model(self.pretrain.whole("model/model.safetensors").parent, config["device"])
            predictions = [self._prediction(model, text) for text in config["sentences"]]
            metrics, masked, rows = self._scores(model)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NumericError(f"evaluate: {name} is {value}: the weights in {self.pretrain.folder} are of no use.")
        rate = self.shards.facts["rate"]
        facts = {
            "metrics": metrics,
            "rates": self._rates(),
            "shards_rate": rate,
            "masked": masked,
            "test": {"digest": self._test_digest(rows), "rows": len(rows)},
            "unigram_smoothing": "add-one over ordinary tokens",
            "champion": self._champion_fact(),
            "predictions": predictions,
        }
        write_atomic(workspace.folder / "report.json", json.dumps(facts, indent=1, sort_keys=True).encode() + b"\n")
        write_atomic(workspace.folder / "curve.png", self._curve(metrics))
        say("evaluate: " + summary(metrics, rate))
        return Built({"rows": len(rows), **{f"masked_rate_{rate}": n for rate, n in masked.items()}}, facts)

    def _rates(self) -> list[str]:
        """The rates asked for and that of the shards, each once and in order, whatever way it is written."""
        rates = {fraction(rate): rate for rate in self.this.config["rates"]}
        rates[fraction(self.shards.facts["rate"])] = self.shards.facts["rate"]
        return [rates[p] for p in sorted(rates)]

    def _comparable(self) -> bool:
        return self.champion is not None and self.champion.identity.inputs["vocabulary"] == self.vocabulary.digest

    def _champion_fact(self) -> dict[str, Any] | None:
        if self.champion is None:
            return None
        reason = "" if self._comparable() else "it has another vocabulary"
        return {"pretrain": self.champion.digest, "scored": self._comparable(), "reason": reason}

    def _scores(self, model: Any) -> tuple[dict[str, float], dict[str, int], list[int]]:
        """Metrics by name, masked tokens by rate, and the rows they were counted in."""
        import numpy as np

        from .batches import ShardReader
        from .scoring import frozen_batches, load_model, model_scorer, score, unigram_scorer, untrained_model

        config = self.this.config
        reader = ShardReader(self.shards, "test")
        rows = np.sort(permutation(EVALUATION_SEED, 0, reader.rows)[: config["max_rows"] or None])
        counts = np.load(self.shards.whole("unigrams.npy"), allow_pickle=False)
        facts = self.pretrain.facts
        untrained = untrained_model(facts["model"], facts["initial_seed"], counts, config["device"])
        scorers = {
            MODEL: model_scorer(model),
            UNIGRAM: unigram_scorer(counts, self._can_be_hidden()),
            UNTRAINED: model_scorer(untrained),
        }
        if self.champion and self._comparable():
            folder = self.champion.whole("model/model.safetensors").parent
            scorers[CHAMPION] = model_scorer(load_model(folder, config["device"]))
        metrics: dict[str, float] = {}
        masked: dict[str, int] = {}
        with progress("evaluate", total=len(rows) * len(self._rates()), unit="rows") as bar:
            for rate in self._rates():
                tallies = score(scorers, frozen_batches(reader, rows, rate, config["rows_per_batch"]), bar.advance)
                masked[rate] = tallies[MODEL].masked
                if not masked[rate]:
                    raise UsageError(f"evaluate: rate {rate} hides no token of the test split; give more documents.")
                for name, tally in tallies.items():
                    metrics |= {f"{name}/rate_{rate}/{key}": round(value, 6) for key, value in tally.metrics().items()}
        return metrics, masked, [int(row) for row in rows]

    def _can_be_hidden(self) -> list[list[int]]:
        """Half-open ranges of the ids that a text can have: the ordinary ones, and [UNK] where the model says it."""
        ranges = [list(entry) for entry in self.shards.facts["vocabulary"]["ordinary"]]
        unknown = self.vocabulary.facts["special_ids"]["unk"]
        return [*ranges, [unknown, unknown + 1]] if self.vocabulary.facts.get("unknown") else ranges

    def _test_digest(self, rows: list[int]) -> str:
        """What two models must share for their scores to be compared: tokens, draws, rows, vocabulary."""
        files = {name: entry.sha256 for name, entry in self.shards.files.items() if name.startswith("test-")}
        return digest_of([self.vocabulary.digest, files, rows, EVALUATION_SEED])

    def _prediction(self, model: Any, text: str) -> dict[str, Any]:
        from .scoring import fill
        from .tokens import open_for_prompts

        tokenizer = open_for_prompts(self.vocabulary.whole("tokenizer.json"))
        typed = text.replace(MASK, self.vocabulary.facts.get("special_names", {}).get("mask", MASK))
        ids, length = tokenizer.encode(unicodedata.normalize("NFC", typed)).ids, model.config.length
        if len(ids) > length:
            raise UsageError(f"evaluate.sentences: {text!r} has {len(ids)} tokens, the context only {length}; cut it.")
        if model.config.mask_id not in ids:
            raise DataError(f"{self.vocabulary.folder} holds a tokenizer that does not know {MASK}; run it again.")
        masks = fill(model, ids, 5, lambda token: tokenizer.decode([token], skip_special_tokens=False))
        return {"text": text, "masks": masks}

    def _curve(self, metrics: Mapping[str, float]) -> bytes:
        from .curve import draw

        points = [json.loads(line) for line in self.pretrain.whole("curve.jsonl").read_bytes().splitlines()]
        rate = self.shards.facts["rate"]
        lines = {
            label: metrics[f"{name}/rate_{rate}/masked_cross_entropy"]
            for name, label in ((UNIGRAM, "unigram"), (UNTRAINED, "untrained"), (CHAMPION, "champion"))
            if f"{name}/rate_{rate}/masked_cross_entropy" in metrics
        }
        return draw(points, lines, rate)


def summary(metrics: Mapping[str, float], rate: str) -> str:
    """One line: the model's masked cross-entropy at a rate beside its baselines'."""
    parts = []
    for name, label in ((MODEL, "test"), (UNIGRAM, "unigram"), (UNTRAINED, "untrained"), (CHAMPION, "champion")):
        loss = metrics.get(f"{name}/rate_{rate}/masked_cross_entropy")
        if loss is not None:
            parts.append(f"{label} {loss:.3f}")
    return f"masked cross-entropy at rate {rate}: " + ", ".join(parts) + " nats"
