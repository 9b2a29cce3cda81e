"""What all sides of a comparison share: shapes, data, frozen places to be judged by; and ours as one of the sides.

Used by steps.py, time_to_loss.py and ablations.py; the opponents are in opponents.py. A side has

    prepare(steps)    makes the batches of the coming steps, off the clock (ours makes its own on the clock)
    step(share)       one optimizer step at a share of the budget -> ordinary tokens taken (no specials, no padding)
    scorers()         how it is asked for its logits at masked places

Ours is reached in `Ours` only: the one place to change with tasks/training.py.

Suffixes: B rows, L positions, M masked positions, N blocks, V vocabulary.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks import optimizer, pretrain, scoring, training
from tasks.artifacts import Manifest, Store
from tasks.batches import ShardReader
from tasks.encoder import EncoderConfig, MaskedLanguageModel
from tasks.ranks import Ranks
from tasks.rates import MaskRates

DATA = Path(__file__).parents[2] / "shared" / "data" / "corpus"
WORK = Path(tempfile.gettempdir()) / "maskmill-benchmarks"
HELD_OUT_RATE = "0.15"


@dataclass(frozen=True)
class Shape:
    """A model and what it reads. The mlp is a GeGLU, 1.5 times as wide as the model, as ModernBERT's."""

    layers: int
    width: int
    heads: int
    intermediate: int
    vocabulary: int
    length: int
    rows: int
    """Rows of L in a step, for everyone but run_mlm's defaults."""

    def encoder(self) -> EncoderConfig:
        return EncoderConfig(self.vocabulary, self.length, self.layers, self.width, self.heads, self.intermediate)

    @property
    def parameters(self) -> int:
        """Of ours and of the stock ModernBERT: the decoder is tied."""
        return sum(one.numel() for one in MaskedLanguageModel(self.encoder()).parameters())

    def bert_parameters_at(self, intermediate: int) -> int:
        """Of BertForMaskedLM with an mlp so wide: its linear layers have biases, its decoder is tied."""
        d, f, v = self.width, intermediate, self.vocabulary
        block = 4 * (d * d + d) + (2 * d * f + f + d) + 4 * d
        return (v + self.length + 2) * d + 2 * d + self.layers * block + (d * d + d + 2 * d + v)

    @property
    def bert_intermediate(self) -> int:
        """The multiple of 16 at which BERT has as many parameters as ours, or nearly."""
        each = self.layers * (2 * self.width + 1)
        return round((self.parameters - self.bert_parameters_at(0)) / each / 16) * 16


SHAPES = {
    "small": Shape(6, 256, 4, 384, 8192, 128, 64),
    "base": Shape(12, 768, 12, 1152, 32768, 512, 16),
    "tiny": Shape(2, 64, 2, 96, 1024, 64, 32),
}
"""tiny is for trying these programs out."""


# The data: made by our own stages, once


@dataclass(frozen=True)
class Data:
    """What everyone trains on and is judged by."""

    vocabulary: Manifest
    shards: Manifest
    corpus: Manifest
    blocks_NL: np.ndarray
    """The training documents as run_mlm.py's group_texts cuts them: [CLS] t… [SEP] end to end, in blocks of L."""

    @property
    def special_ids(self) -> dict[str, int]:
        return dict(self.vocabulary.facts["special_ids"])


def prepared(shape: Shape, folder: Path, work: Path, **shards_settings: Any) -> Data:
    """Corpus, vocabulary, shards and blocks; found again in `work` the next time."""
    from tasks.corpus import CorpusConfig, corpus
    from tasks.shards import ShardsConfig, shards
    from tasks.sources import Source
    from tasks.vocabulary import VocabularyConfig, vocabulary

    if not folder.is_dir():
        raise SystemExit(f"There is no text at {folder}: name a folder of text files with --data.")
    store = Store(work / "store")
    text, _ = corpus(CorpusConfig((Source(str(folder)),)), store)
    words, _ = vocabulary(VocabularyConfig(size=shape.vocabulary), text, store)
    rows, _ = shards(ShardsConfig(length=shape.length, **shards_settings), text, words, store)
    path = work / f"blocks-{text.digest[:12]}-{words.digest[:12]}-{shape.length}.npy"
    if not path.exists():
        unfinished = path.with_suffix(".part.npy")
        np.save(unfinished, blocks(text, words, shape.length))
        os.replace(unfinished, path)
    return Data(words, rows, text, np.load(path, mmap_mode="r"))


def blocks(text: Manifest, words: Manifest, length: int) -> np.ndarray:
    """The train split in blocks (N, L): what stays over at the end of the corpus, and only there, is left out."""
    from tasks.tokens import encode, open_for_text, read_texts

    tokenizer = open_for_text(words.whole("tokenizer.json"))
    special, parts = words.facts["special_ids"], []
    for split, texts in read_texts(text):
        if split == "train" and len(texts):
            ids, sizes = encode(tokenizer, texts.to_pylist())
            ends = np.cumsum(sizes)
            at = np.stack((ends - sizes, ends), axis=1).reshape(-1)
            marks = np.tile([special["cls"], special["sep"]], len(sizes))
            parts.append(np.insert(ids, at, marks).astype(np.uint16 if words.facts["size"] <= 1 << 16 else np.uint32))
    whole = np.concatenate(parts)
    return whole[: len(whole) // length * length].reshape(-1, length)


# The measure


class Measure:
    """Masked cross-entropy on frozen places of the validation split, all showing [MASK]: the same for every side."""

    def __init__(self, data: Data, rows: int, rate: str = HELD_OUT_RATE) -> None:
        reader = ShardReader(data.shards, "validation")
        ids = np.linspace(0, reader.rows - 1, min(rows, reader.rows)).astype(np.int64)
        self.batches = list(scoring.frozen_batches(reader, ids, rate, 32))
        self.masked = sum(batch.count for batch in self.batches)
        counts = np.load(data.shards.whole("unigrams.npy"), allow_pickle=False)
        unigram = scoring.unigram_scorer(counts, data.shards.facts["vocabulary"]["ordinary"])
        self.unigram = self.of({"unigram": unigram})

    def of(self, scorers: dict[str, scoring.Scorer]) -> float:
        """Nats per masked token, by the scorer that does best."""
        tallies = scoring.score(scorers, iter(self.batches), lambda rows: None)
        return min(tally.metrics()["masked_cross_entropy"] for tally in tallies.values())

    def side(self, side: Any) -> float:
        """Of a side as it is now, in float32 and without dropout."""
        side.model.eval()
        loss = self.of(side.scorers())
        side.model.train()
        return loss


# Ours


def config_of(shape: Shape, rows: int = 0, micro: int = 0, **settings: Any) -> pretrain.PretrainConfig:
    """The recipe's defaults in a shape; `rows` of a step (0: the shape's), `micro` rows at a time (0: all)."""
    names = ("layers", "width", "heads", "intermediate")
    rows = rows or shape.rows
    settings |= {"batch_tokens": rows * shape.length, "micro_tokens": micro * shape.length}
    return pretrain.PretrainConfig(**{name: getattr(shape, name) for name in names}, **settings)


def fingerprint(config: pretrain.PretrainConfig) -> dict[str, Any]:
    """All settings, the defaults too, for the key of a run in a `Journal`: a changed default is another run."""
    return {"version": pretrain.VERSION, **asdict(config)}


class Ours:
    """A `Training` in this process, in a folder that is removed with it."""

    def __init__(
        self, shape: Shape, data: Data, seed: int = 0, mask_rate: Any = HELD_OUT_RATE, **settings: Any
    ) -> None:
        settings = {"steps": 1_000_000, "threads": torch.get_num_threads(), "device": "cpu", "seed": seed} | settings
        config = config_of(shape, mask_rates=MaskRates(rates=(str(mask_rate),)), **settings)
        self.config = config
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        job = pretrain.job_of(config, data.vocabulary, [data.shards], folder, folder / ".scratch", None)
        self.training = training.Training(job, Ranks(torch.device(job["config"]["device"])))
        self.training.begin()  # finds nothing, and begins the curve
        self.model = self.training.model

    def prepare(self, steps: int = 1) -> None:
        """Nothing: our batches are made within the step."""

    def step(self, share: float = 0.0) -> int:
        before = self.training.tokens
        self.training.take_step()
        return self.training.tokens - before

    def checkpoint(self) -> None:
        self.training.checkpoint()

    def scorers(self) -> dict[str, scoring.Scorer]:
        return {"ours": scoring.model_scorer(self.model)}


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Seconds of the parts of `Ours.step` within the block; what is in none of them is the forward pass."""
    spent: dict[str, float] = {}

    def clock(owner: Any, name: str, part: str) -> tuple[Any, str, Any]:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent[part] = spent.get(part, 0.0) + time.perf_counter() - started

        setattr(owner, name, timed)
        return owner, name, original

    seams = [
        clock(training, "segments_of_step", "data wait"),
        clock(training, "training_batch", "data wait"),
        clock(torch.autograd, "backward", "backward"),
        clock(optimizer.Optimizers, "clip", "optimizer"),
        clock(optimizer.Optimizers, "step", "optimizer"),
        clock(optimizer.Optimizers, "zero_grad", "optimizer"),
    ]
    try:
        yield spent
    finally:
        for owner, name, original in seams:
            setattr(owner, name, original)


# What every program asks for


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """ "modernbert,dtype=bfloat16,rows=64" -> the kind and its settings, numbers as numbers."""
    kind, *pairs = text.split(",")
    found = (pair.partition("=") for pair in pairs)
    return kind, {key: _value(value) for key, _, value in found}


def _value(text: str) -> Any:
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


def asked(parser: Any) -> None:
    """The options that all programs share."""
    parser.add_argument("--data", type=Path, default=DATA, help="a folder of text files (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=WORK, help="where everything is kept (default: %(default)s)")
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side")


class Journal:
    """Finished runs as JSON lines: a run that is there is not repeated. A torn last line is that of a kill."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.runs = path, {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            self.runs[self.key(entry["run"])] = entry

    @staticmethod
    def key(run: dict[str, Any]) -> str:
        return json.dumps(run, sort_keys=True)

    def __call__(self, run: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a run found: read, or made and written down."""
        if (key := self.key(run)) not in self.runs:
            self.runs[key] = {"run": run, **make()}
            whole = self.path.read_bytes() if self.path.exists() else b""
            with open(self.path, "a") as file:
                file.write("\n" * (not whole.endswith(b"\n") and bool(whole)) + json.dumps(self.runs[key]) + "\n")
        return self.runs[key]
