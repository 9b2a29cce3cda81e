"""How fast is the shards stage? Against the raw engine, against datasets.map + group_texts, at two sizes.

    python benchmarks/shards.py DATA/corpus                                    all cases, 60 MB and 600 MB, L = 128
    python benchmarks/shards.py DATA/corpus --sizes 60 --only raw ours         both engines, without the recipe
    python benchmarks/shards.py DATA/corpus --sizes --layout --sampler         fill, bytes and the sampler alone

The text is that of benchmarks/corpus.py: repeated with seeded edits. The corpus is made once per size, and a vocabulary
of 32768 learnt on 60 MB of it. Every measurement is a process of its own; they alternate, and the medians count.

raw         encode_batch_fast of tokenizers on the documents' pieces, 16 MB at a time on all cores, ids thrown away
raw-fast    encode_batch of gigatoken on them
ours        the stage from the finished manifests, with tokenizers
ours-fast   the stage with gigatoken; left out where it is not installed
recipe      datasets.map(tokenize) and map(group_texts), batched, as transformers' run_mlm.py does, num_proc = workers
lean        the same with nothing but input_ids: the least that can be asked of that way

`s` is what the case itself took: of raw the encoding alone; of ours from the open manifests to the finished shards,
worker processes started; of the recipe from load_dataset to the end of the second map, imports left out. Wall seconds
and CPU seconds are of the whole process tree, memory is the peak of its anonymous and shared memory, sampled; `draws`
is the sampler's share of the CPU seconds.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from corpus import ROOT, measure, repeated

sys.path.insert(0, str(ROOT))

from tasks import engines
from tasks.artifacts import Manifest, Store, load

RAW_BYTES = 16 << 20
VOCABULARY = 32768
POLICIES = ("uniform", "whole-word", "span")


def prepared(source: Path, store: Store, workers: int) -> tuple[Manifest, Manifest]:
    """A corpus of the files below a folder, and its vocabulary."""
    from tasks.corpus import CorpusConfig, corpus
    from tasks.minhash import NearDuplicates
    from tasks.sources import Source
    from tasks.vocabulary import VocabularyConfig, vocabulary

    sources, near = (Source(str(source)),), NearDuplicates(enabled=False)
    text, _ = corpus(CorpusConfig(sources, near_duplicates=near, workers=workers, max_bad_fraction="1"), store)
    words, _ = vocabulary(VocabularyConfig(size=VOCABULARY, sample_bytes=60_000_000), text, store)
    return text, words


def made(
    text: Manifest, words: Manifest, work: Path, engine: str, length: int, workers: int = 0, **settings: Any
) -> tuple[Manifest, float]:
    """Shards of their own by an engine, and the seconds that the stage took."""
    from tasks.shards import ShardsConfig, shards

    if engine == engines.REFERENCE:
        engines.installed = lambda: False
    config = ShardsConfig(length=length, workers=workers, **settings)
    started = time.perf_counter()
    manifest, _ = shards(config, text, words, Store(work / "store"))
    return manifest, time.perf_counter() - started


# What is measured: each a process, which writes its figures to work/said.json


def raw(given: Any, engine: str) -> dict[str, Any]:
    text, words = load(given.corpus), load(given.vocabulary)
    path = words.whole("tokenizer.json")
    encode = raw_encoder(engine, path)
    seconds = 0.0
    for some in portions(text, path):
        started = time.perf_counter()
        encode(some)
        seconds += time.perf_counter() - started
    return {"s": seconds}


def raw_encoder(engine: str, path: Path) -> Callable[[list[str]], Any]:
    from tasks.tokens import open_for_text

    if engine == engines.REFERENCE:
        tokenizer = open_for_text(path)
        return lambda some: tokenizer.encode_batch_fast(some, add_special_tokens=False)
    from gigatoken import Tokenizer

    return Tokenizer.from_json(engines.without_specials(json.loads(path.read_text()))).encode_batch


def portions(text: Manifest, path: Path) -> Iterator[list[str]]:
    """The pieces of all documents, RAW_BYTES at a time: a novel whole takes tokenizers five times as long."""
    from tasks.tokens import open_for_text, pieces, places, read_texts

    held, some = 0, []
    where = places(open_for_text(path))
    for _, texts in read_texts(text):
        for one in texts.to_pylist():
            some += pieces(one, where)
            held += len(one)
            if held >= RAW_BYTES:
                yield some
                held, some = 0, []
    yield some


def ours(given: Any, engine: str) -> dict[str, Any]:
    text, words = load(given.corpus), load(given.vocabulary)
    manifest, seconds = made(text, words, given.work, engine, given.length, given.workers)
    measured = json.loads((manifest.folder / "measured.json").read_text())
    if measured.get("engine", engine) != engine:
        raise SystemExit(f"The stage used {measured['engine']} where {engine} was to be measured.")
    return {"s": seconds, "draws": measured["cpu_seconds_draws"], "tokens": manifest.counts["tokens"]}


def recipe(given: Any, lean: bool) -> dict[str, Any]:
    os.environ |= {"HF_HOME": str(given.work / "hf"), "HF_DATASETS_OFFLINE": "1", "TMPDIR": str(given.work)}
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(given.vocabulary)
    files = sorted(str(path) for path in given.corpus.glob("*.parquet"))

    def tokenize(examples: Any) -> Any:
        if lean:
            return tokenizer(examples["text"], return_attention_mask=False)
        return tokenizer(examples["text"], return_special_tokens_mask=True)

    def group_texts(examples: Any) -> Any:
        joined = {key: list(chain(*examples[key])) for key in examples}
        total = len(joined["input_ids"]) // given.length * given.length
        return {
            key: [one[at : at + given.length] for at in range(0, total, given.length)] for key, one in joined.items()
        }

    started = time.perf_counter()
    texts = datasets.load_dataset("parquet", data_files=files, split="train", columns=["text"])
    tokens = texts.map(tokenize, batched=True, num_proc=given.workers, remove_columns=texts.column_names)
    rows = tokens.map(group_texts, batched=True, num_proc=given.workers)
    return {"s": time.perf_counter() - started, "tokens": len(rows) * given.length}


CASES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "raw": lambda given: raw(given, engines.REFERENCE),
    "raw-fast": lambda given: raw(given, engines.FAST),
    "ours": lambda given: ours(given, engines.REFERENCE),
    "ours-fast": lambda given: ours(given, engines.FAST),
    "recipe": lambda given: recipe(given, False),
    "lean": lambda given: recipe(given, True),
}


# What needs no clock, and the sampler


def layout(given: Any, folder: Path) -> None:
    """How full the rows of the corpus are, how many documents are cut, and what a token and a segment take on disk."""
    text, words = prepared(given.folder, Store(folder / "store"), given.workers)
    print(f"\n{given.folder}: {text.counts['documents_kept']:,} documents, K = 1", flush=True)
    print(
        f"{'L':>5} {'packing':9} {'full':>8} {'cut':>7} {'sentence':>9} {'word':>7} {'B/token':>8} {'B/position':>11} "
        f"{'refs B/segment':>15} {'file B/token':>13}"
    )
    for length in given.lengths:
        for packing in ("best-fit", "in-order"):
            work = folder / f"{length}-{packing}"
            manifest, _ = made(text, words, work, quickest(), length, given.workers, packing=packing)
            print(layout_line(manifest, length, packing), flush=True)
            shutil.rmtree(work)


def quickest() -> str:
    return engines.FAST if engines.installed() else engines.REFERENCE


def layout_line(manifest: Manifest, length: int, packing: str) -> str:
    from tasks.rows import read

    facts, counts = manifest.facts, manifest.counts
    tokens, cuts = counts["tokens"], max(counts.get("cuts", 0), 1)
    data = references = whole = positions = 0
    for split in facts["splits"].values():
        for entry in split["files"]:
            rows = read(manifest.folder / entry["name"])
            positions += rows.num_rows * length
            whole += (manifest.folder / entry["name"]).stat().st_size
            references += rows.column("segments").nbytes
            data += sum(rows.column(name).nbytes for name in rows.schema.names if name[:5] in ("token", "draw_"))
    at = [counts.get(f"cuts_at_{place}", 0) / cuts for place in ("sentence", "word")]
    return (
        f"{length:5} {packing:9} {facts['fill_rate']:8.3%} {facts['cut_rate']:7.2%} {at[0]:9.1%} {at[1]:7.1%} "
        f"{data / tokens:8.3f} {data / positions:11.3f} {references / counts['segments']:15.2f} {whole / tokens:13.3f}"
    )


def sampler(given: Any, folder: Path) -> None:
    """Draws of 𝓜 alone, in this process, on the packed rows of the corpus: bits made, none written."""
    from tasks.draws import masks_of
    from tasks.masking import Policy
    from tasks.rows import draw, read, segments_of

    text, words = prepared(given.folder, Store(folder / "store"), given.workers)
    print(f"\nsampler, Mtok per CPU-second, median of {given.repeats}", flush=True)
    print(f"{'L':>5} " + " ".join(f"{name:>10}" for name in POLICIES), flush=True)
    for length in (64, 128, 512):
        work = folder / f"sampler-{length}"
        manifest, _ = made(text, words, work, quickest(), length, given.workers)
        masks, split = masks_of(manifest, "train"), manifest.facts["splits"]["train"]
        rows = read(manifest.folder / split["files"][0]["name"])
        tokens = int((segments_of(rows)[0] - 2).sum())
        speeds: dict[str, list[float]] = {name: [] for name in POLICIES}
        for number in range(given.repeats):
            for name, some in speeds.items():
                started = time.process_time()
                for _ in draw(rows, masks._replace(policy=Policy(name)), number):
                    pass
                some.append(tokens / 1e6 / (time.process_time() - started))
        print(f"{length:5} " + " ".join(f"{median(some):10.1f}" for some in speeds.values()), flush=True)
        shutil.rmtree(work)


# Measuring


def report(given: Any, size: int, folder: Path) -> dict[str, float]:
    """Prints the table of a size; returns the seconds of each case."""
    repeated(given.folder, folder, size * 1_000_000)
    shutil.rmtree(folder / "records")
    text, words = prepared(folder / "text", Store(folder / "store"), given.workers)
    shutil.rmtree(folder / "text")
    work, megabytes = folder / "work", text.counts["bytes_kept"] / 1e6
    rest = ["--work", str(work), "--workers", str(given.workers), "--length", str(given.length)]
    rest += ["--corpus", str(text.folder), "--vocabulary", str(words.folder)]
    cases = [name for name in CASES if name in given.only and (engines.installed() or "fast" not in name)]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(given.repeats):
        for name, some in runs.items():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            figures = measure([sys.executable, __file__, str(given.folder), *rest, "--child", name])
            some.append(figures | json.loads((work / "said.json").read_text()))
    shutil.rmtree(folder)
    print(
        f"\n{megabytes:.1f} MB, {text.counts['documents_kept']:,} documents, L = {given.length}, "
        f"{given.workers} processes, median of {given.repeats}"
    )
    print(f"{'':10} {'s':>8} {'wall s':>8} {'cpu s':>8} {'MB/s':>7} {'MB/cpu-s':>9} {'memory MB':>10} {'draws':>6}")
    found = {name: {key: median(one[key] for one in some) for key in some[0]} for name, some in runs.items()}
    for name, one in found.items():
        share = f"{one['draws'] / one['cpu']:6.1%}" if "draws" in one else ""
        print(
            f"{name:10} {one['s']:8.2f} {one['wall']:8.2f} {one['cpu']:8.2f} {megabytes / one['s']:7.1f} "
            f"{megabytes / one['cpu']:9.1f} {one['memory']:10.0f} {share}"
        )
    ratios(runs)
    return {name: one["s"] for name, one in found.items()}


def ratios(runs: dict[str, list[dict[str, float]]]) -> None:
    """Of neighbours in time: the median of the ratios of each round, not the ratio of the medians."""
    pairs = [("raw", "ours"), ("raw-fast", "ours-fast"), ("recipe", "ours"), ("recipe", "ours-fast")]
    for slow, fast in [*pairs, ("lean", "ours"), ("lean", "ours-fast")]:
        if slow in runs and fast in runs:
            some = [a["s"] / b["s"] for a, b in zip(runs[slow], runs[fast], strict=True)]
            print(f"{slow} / {fast}: {median(some):.2f} ({min(some):.2f} to {max(some):.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="text files to repeat")
    parser.add_argument("--sizes", type=int, nargs="*", default=[60, 600], help="MB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--length", type=int, default=128, help="L of what is timed")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 1024], help="of --layout")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--layout", action="store_true", help="how full the rows are, on the folder as it is")
    parser.add_argument("--sampler", action="store_true", help="the sampler alone, on the folder as it is")
    for name in ("--work", "--corpus", "--vocabulary"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        (given.work / "said.json").write_text(json.dumps(CASES[given.child](given)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seconds = {size: report(given, size, folder / str(size)) for size in given.sizes}
        if len(seconds) > 1:
            small, large = min(seconds), max(seconds)
            for name in seconds[small]:
                factor = seconds[large][name] / seconds[small][name]
                print(f"{name}: {large / small:g} times the text takes {factor:.2f} times as long", flush=True)
        for wanted, work in ((given.layout, layout), (given.sampler, sampler)):
            if wanted:
                work(given, folder)


if __name__ == "__main__":
    main()
