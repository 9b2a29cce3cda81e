"""A small model with a real tokenizer and the manifests around it, made in a second. For several test modules."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tasks import evidence
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace
from tasks.results import CHAMPION, MODEL, Units
from tasks.vocabulary import special_token, tokenizer_config
from tests.tasks import handmade

LENGTH = 32
TEXT = "the cat sat on the mat and the dog sat on the log"


def corpus(store: Store) -> Manifest:
    def build(workspace: Workspace) -> Built:
        counts = {"documents_kept": 12, "bytes_kept": 600, "rejected_short": 1, "rejected_duplicate": 0}
        texts = [f"{TEXT} number {number}" for number in range(12)]
        split = ["train", "validation", "test"] * 4
        table = pa.table({"text": texts, "split": split, "source": pa.array(["novels"] * 12)})
        pq.write_table(table, workspace.folder / "documents-00000.parquet", write_page_checksum=True)
        counts |= {f"documents_{name}": 4 for name in ("train", "validation", "test")}
        return Built(counts, {"sources": ["novels"]})

    return store.make(Identity("corpus", 1, {}, {}), build)[0]


def vocabulary(store: Store, corpus: Manifest) -> Manifest:
    """Byte-level BPE of 281 tokens in the form of the vocabulary stage."""

    def build(workspace: Workspace) -> Built:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = [AddedToken(**special_token(name)) for name in handmade.SPECIAL_IDS]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator([TEXT] * 20, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer.save(str(workspace.folder / "tokenizer.json"))
        (workspace.folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2))
        size = tokenizer.get_vocab_size()
        return Built({}, {"size": size, "special_ids": handmade.SPECIAL_IDS, "ordinary": [[5, size]]})

    return store.make(Identity("vocabulary", 1, {}, {"corpus": corpus.digest}), build)[0]


def shards(store: Store, vocabulary: Manifest, rows: int = 64) -> Manifest:
    return handmade.shards(store, rows=rows, length=LENGTH, size=vocabulary.facts["size"])


def pretrain(store: Store, vocabulary: Manifest, shards: Manifest, seed: int = 0, noise: float = 0.0) -> Manifest:
    """A model as `initialise` leaves it (as good as the unigram baseline), or worse by random weights."""
    import torch

    from tasks.encoder import EncoderConfig, MaskedLanguageModel, initialise
    from tasks.stock import save_stock

    sizes = EncoderConfig(
        vocabulary_size=vocabulary.facts["size"], length=LENGTH, layers=2, width=32, heads=2, intermediate=48
    )

    def build(workspace: Workspace) -> Built:
        model = MaskedLanguageModel(sizes)
        initialise(model, seed, np.load(shards.path("unigrams.npy"), allow_pickle=False))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += noise * torch.randn(parameter.shape, generator=generator)
        save_stock(model, workspace.folder / "model")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (workspace.folder / "model" / name).write_bytes(vocabulary.path(name).read_bytes())
        points = [{"step": n, "tokens": 1000 * n, "train/loss": 5.6 - 0.1 * n} for n in range(1, 5)]
        points[-1]["validation/masked_cross_entropy"] = 5.3
        (workspace.folder / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        facts = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "steps": 4,
            "tokens": 4000,
            "model": asdict(sizes),
            "initial_seed": seed,
        }
        return Built({"steps": 4}, facts, {"tokens_per_second": 1234.5})

    inputs = {"vocabulary": vocabulary.digest, "shards": shards.digest}
    return store.make(Identity("pretrain", 1, {"seed": seed, "noise": noise, "threads": 1}, inputs), build)[0]


def scored(
    path,
    nats: dict[str, float],
    pretrain: dict[str, str],
    test: str = "a" * 64,
    classes: dict[str, float] | None = None,
    bits: dict[str, float] | None = None,
    vocabulary: dict[str, str] | None = None,
    copies: dict[str, object] | None = None,
) -> None:
    """Evidence written by hand: 12 documents of 200 masked tokens, which differ in how hard they are.

    nats, pretrain      by label: the masked cross-entropy, and whose it is
    classes             of one stratum: by how much the model (not the champion) is worse there than on the whole
    bits                by label: bits per byte of as many passages
    """
    hard = 1 + (np.arange(12) - 5.5) / 50
    n = np.full(12, 200)
    names = tuple(f"{test[:4]}{number:028d}" for number in range(12))
    units = [Units("document", ("",) * 12, names, n, {label: one * n * hard for label, one in nats.items()})]
    if classes:
        sizes = np.full(len(classes), 1200)
        off = {label: np.array(list(classes.values())) if label == MODEL else 0.0 for label in nats}
        losses = {label: sizes * (one + off[label]) for label, one in nats.items()}
        units.append(Units("class", ("by source",) * len(classes), tuple(classes), sizes, losses))
    if bits:
        units.append(Units("passage", names, names, n, {label: one * n * hard for label, one in bits.items()}))
    models = {
        label: {"pretrain": one, "vocabulary": (vocabulary or {}).get(label, "v"), "changes_text": False}
        for label, one in pretrain.items()
    }
    evidence.write(path, units, {"test": test, "rate": "0.3", "copies": copies or {}, "models": models})


def evaluate(
    store: Store, pretrain: Manifest, nats: float, test: str = "a" * 64, rival: str = "", **shown: object
) -> Manifest:
    """A report written by hand.

    shown   what else `scored` is told; rival_nats: what the champion was found to have on the same test set
    """
    named = {"nats": nats, "test": test} | {name: str(value) for name, value in shown.items()}
    rival_nats = shown.pop("rival_nats", None)

    def build(workspace: Workspace) -> Built:
        metrics = {}
        for prefix, loss in (("test", nats), ("baseline_unigram", 5.6), ("baseline_untrained", 5.6)):
            for rate in ("0.15", "0.3"):
                scores = {"masked_cross_entropy": loss, "perplexity": 2.0, "top1_accuracy": 0.1, "top5_accuracy": 0.2}
                metrics |= {f"{prefix}/rate_{rate}/{name}": value for name, value in scores.items()}
        ranked = [{"token": f" w{number}", "probability": 0.1} for number in range(5)]
        facts = {
            "metrics": metrics,
            "rates": ["0.15", "0.3"],
            "shards_rate": "0.3",
            "masked": {"0.15": 100, "0.3": 200},
            "test": {"digest": test, "rows": 16},
            "champion": None,
            "predictions": [{"text": "the cat [MASK] on the mat", "masks": [ranked]}],
        }
        (workspace.folder / "report.json").write_text(json.dumps(facts))
        (workspace.folder / "curve.png").write_bytes(b"\x89PNG")
        if shown.get("old"):  # of a time when there was no gate
            return Built({"rows": 16}, facts)
        both = {MODEL: nats} | ({CHAMPION: rival_nats} if rival_nats else {})
        of = {MODEL: pretrain.digest} | ({CHAMPION: rival} if rival else {})
        scored(workspace.folder / evidence.FILE, both, of, test, **shown)
        return Built({"rows": 16}, facts)

    inputs = {"pretrain": pretrain.digest} | ({"champion": rival} if rival else {})
    return store.make(Identity("evaluate", 1, named, inputs), build)[0]
