"""A document of 100 MB among small ones: encoded, cut and packed whole, in bounded memory."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import engines
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace
from tasks.vocabulary import VocabularyConfig, vocabulary

ROOT = Path(__file__).parents[2]
NOVELS = ROOT.parent / "shared" / "data" / "corpus" / "novels"
MEGABYTES = 2500
"""Peak of the process: some fifteen times the document, and the interpreter with its libraries."""
PROGRAM = """
import resource, sys
from pathlib import Path
from tasks import engines
from tasks.artifacts import Store, load
from tasks.shards import ShardsConfig, shards, verify_masks
if __name__ == "__main__":
    text, words, out = (Path(one) for one in sys.argv[1:4])
    if sys.argv[4] == engines.REFERENCE:
        engines.installed = lambda: False
    made, _ = shards(ShardsConfig(length=512), load(text), load(words), Store(out))
    assert made.measured()["engine"] == sys.argv[4]
    assert verify_masks(made) == []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(peak, made.counts["tokens"], made.counts["documents_cut"], made.facts["fill_rate"])
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not list(NOVELS.glob("*.txt")), reason="the corpus of novels is not on this machine"),
]


def corpus_of(store: Store, texts: list[str], split: str) -> Manifest:
    splits = ["train"] * (len(texts) - 2) + ["validation", "test"]

    def build(workspace: Workspace) -> Built:
        table = pa.table({"text": pa.array(texts, pa.large_string()), "split": pa.array(splits)})
        pq.write_table(table, workspace.folder / "documents-00000.parquet", row_group_size=8, write_page_checksum=True)
        counts = {f"documents_{name}": splits.count(name) for name in ("train", "validation", "test")}
        return Built(counts | {"bytes_kept": sum(map(len, texts))}, {})

    return store.make(Identity("corpus", 2, {"large": split}, {}), build)[0]


@pytest.mark.parametrize("engine", [engines.REFERENCE, engines.FAST])
def test_a_document_of_100_megabytes_is_kept_whole(tmp_path: Path, engine: str) -> None:
    if engine == engines.FAST and not engines.installed():
        pytest.skip("gigatoken (maskmill[fast]) is not installed")
    novels = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(NOVELS.glob("*.txt"))]
    text, number = [], 0
    while sum(map(len, text)) < 100_000_000:  # each time another cut, so that nothing is simply repeated
        text.append(novels[number % len(novels)][number * 7 :])
        number += 1
    small = [novel[:2000] for novel in novels[:12]]
    store = Store(tmp_path)
    learnt, _ = vocabulary(VocabularyConfig(size=2048), corpus_of(store, [*novels[:8], *small], "small"), store)
    large = corpus_of(store, [*small[:5], "\n".join(text), *small[5:]], "large")
    (tmp_path / "make.py").write_text(PROGRAM)
    folders = [str(large.folder), str(learnt.folder), str(tmp_path / "out")]
    words = [sys.executable, str(tmp_path / "make.py"), *folders, engine]
    done = subprocess.run(words, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    peak, tokens, cut, fill = done.stdout.split()
    assert int(peak) < MEGABYTES, done.stdout
    assert int(tokens) > 20_000_000 and int(cut) >= 1 and float(fill) > 0.99
