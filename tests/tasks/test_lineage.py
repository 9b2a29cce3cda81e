"""From a version down to its source files: what is named is found, and what is wrong with it is said."""

import json
import os
import shutil

import pytest

from tasks import lineage, places
from tasks.artifacts import Built, Identity, Store
from tasks.sources import Source, survey


class Chain:
    """Artifacts of all stages with the inputs that the stages give them, each a small file; and a version's tags."""

    def __init__(self, root):
        self.store, self.texts = Store(root / "store"), root / "texts"
        self.texts.mkdir()
        for name in ("a.txt", "b.txt", "c.txt"):
            (self.texts / name).write_text(f"the text {name}")
        self.surveyed = survey((Source(str(self.texts), "novels", licence="CC0"),), self.store.root)
        inputs = {one.source.name: one.digest for one in self.surveyed}
        self.corpus = self.make("corpus", inputs, {"sources": [{"name": "novels", "kind": "files", "licence": "CC0"}]})
        places.remember(self.corpus.folder, self.surveyed)
        self.vocabulary = self.make("vocabulary", {"corpus": self.corpus.digest})
        both = {"corpus": self.corpus.digest, "vocabulary": self.vocabulary.digest}
        self.shards, self.shorter, self.other = (self.make("shards", both, number=n) for n in (32, 16, 8))
        trained = {"vocabulary": self.vocabulary.digest}
        self.fork = self.make("pretrain", trained | {"shards": self.other.digest}, number=1)
        trained |= {"shards": self.shards.digest, "shards_16": self.shorter.digest, "fork": self.fork.digest}
        self.rival = self.make("pretrain", {"vocabulary": self.vocabulary.digest}, number=3)
        self.pretrain = self.make("pretrain", trained, number=2)
        every = both | {"shards": self.shards.digest, "pretrain": self.pretrain.digest}
        self.evaluate = self.make("evaluate", every | {"champion": self.rival.digest})
        self.register = self.make("register", every | {"evaluate": self.evaluate.digest})
        self.tags = every | {name: trained[name] for name in ("shards_16", "fork")} | {"nats": "3.1", "test": "a" * 64}
        self.tags |= {"evaluate": self.evaluate.digest, "register": self.register.digest, "rival": self.rival.digest}

    def make(self, stage, inputs, facts=None, number=0):
        def build(work):
            (work.folder / "data.bin").write_bytes(f"{stage} {number}".encode() * 50)
            return Built({}, facts or {})

        return self.store.make(Identity(stage, 1, {"number": number}, inputs), build)[0]

    def states(self, hashed=False):
        """Name -> state, but for what is whole."""
        found = lineage.trace(self.tags, self.store, hashed)
        return {one.name: one.state for one in found.artifacts.values() if one.state != "whole"}

    def files(self, hashed=False):
        found = lineage.trace(self.tags, self.store, hashed)
        ((origin,),) = (one.origins for one in found.artifacts.values() if one.origins)
        return {file.label: file.state for file in origin.files}


@pytest.fixture
def chain(tmp_path):
    return Chain(tmp_path)


NAMED = ["register", "evaluate", "pretrain", "fork", "rival", "shards", "shards_16", "vocabulary", "corpus"]


def test_the_whole_chain_is_found_and_whole_down_to_the_files(chain):
    found = lineage.trace(chain.tags, chain.store)
    assert not found.damaged and not found.gone and not found.lacking
    assert [(one.name, one.stage) for one in found.artifacts.values()] == [
        *((name, lineage.stage_of(name)) for name in NAMED),
        ("shards", "shards"),  # those that the fork was trained on
    ]
    assert [found.artifacts.get(found.above(one)) for one in found.artifacts.values() if one.name == "fork"] == [
        found.artifacts[chain.pretrain.digest]
    ]
    assert found.above(found.artifacts[chain.other.digest]) == chain.fork.digest
    (origin,) = found.artifacts[chain.corpus.digest].origins
    assert (origin.name, origin.kind, origin.licence) == ("novels", "files", "CC0")
    assert (
        chain.files() == chain.files(True) == dict.fromkeys(("novels/a.txt", "novels/b.txt", "novels/c.txt"), "there")
    )


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    ("what", "state", "hashed"),
    [
        ("gone", "gone", False),
        ("file gone", "damaged", False),
        ("file shorter", "damaged", False),
        ("file flipped", "whole", False),
        ("file flipped", "damaged", True),
        ("manifest flipped", "damaged", False),
        ("digest flipped", "damaged", False),
        ("manifest torn", "damaged", False),
    ],
)
def test_what_is_gone_and_what_is_damaged_is_named(chain, name, what, state, hashed):
    one = getattr(chain, "shorter" if name == "shards_16" else name)
    data, manifest = one.folder / "data.bin", one.folder / "manifest.json"
    if what == "gone":
        shutil.rmtree(one.folder)
    elif what == "file gone":
        data.unlink()
    elif what == "file shorter":
        os.truncate(data, 3)
    elif what == "file flipped":
        data.write_bytes(data.read_bytes().swapcase())
    elif what == "manifest flipped":
        manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    elif what == "digest flipped":
        manifest.write_text(manifest.read_text().replace(one.digest, one.digest[::-1]))
    else:
        os.truncate(manifest, 40)
    states = chain.states(hashed)
    assert states.get(name, "whole") == state
    assert set(states) <= {name, *(() if what != "manifest torn" else NAMED)}
    if state == "damaged":
        (found,) = [one for one in lineage.trace(chain.tags, chain.store, hashed).damaged if one.name == name]
        assert str(one.folder) in found.why


def test_a_source_file_is_there_changed_or_gone(chain):
    a, b, c = sorted(chain.texts.iterdir())
    b.write_text("another text")
    c.unlink()
    assert chain.files() == {"novels/a.txt": "there", "novels/b.txt": "changed", "novels/c.txt": "gone"}
    c.write_text("the text c.txt")  # the same bytes at another time
    a.write_text("THE TEXT a.txt")  # other bytes, as many
    assert chain.files() == {"novels/a.txt": "changed", "novels/b.txt": "changed", "novels/c.txt": "there"}


def test_only_hashing_finds_a_change_that_left_no_trace(chain, monkeypatch):
    line = json.loads((chain.corpus.folder / places.PLACES).read_bytes().splitlines()[0])
    (chain.texts / "a.txt").write_text("THE TEXT a.txt")
    now = (chain.texts / "a.txt").stat()
    line["stamp"] = [now.st_size, now.st_mtime_ns, now.st_ino, now.st_ctime_ns]
    (chain.corpus.folder / places.PLACES).write_text(json.dumps(line) + "\n")
    assert chain.files() == {"novels/a.txt": "there"} and chain.files(True) == {"novels/a.txt": "changed"}


def test_a_corpus_that_does_not_know_where_its_files_lay_says_so(chain):
    path = chain.corpus.folder / places.PLACES
    path.unlink()
    (origin,) = lineage.trace(chain.tags, chain.store).artifacts[chain.corpus.digest].origins
    assert not origin.files and "the next run" in origin.note and origin.digest
    path.write_text("{}\n")
    (origin,) = lineage.trace(chain.tags, chain.store).artifacts[chain.corpus.digest].origins
    assert not origin.files and "is damaged" in origin.note
    places.remember(chain.corpus.folder, chain.surveyed)
    assert len(chain.files()) == 3


def test_what_a_version_should_say_and_does_not_is_said(chain):
    del chain.tags["shards_16"], chain.tags["evaluate"]
    chain.tags["fork"] = "b" * 64
    found = lineage.trace(chain.tags, chain.store)
    assert [line.split("tag '")[1].split("'")[0] for line in found.lacking] == ["evaluate", "fork", "shards_16"]
    assert found.artifacts[chain.shorter.digest].name == "shards_16"  # its pretrain artifact knows it all the same


def test_a_registered_file_that_is_another_one_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    sha = "9c4ee3bd5d9bd0b6e3d3a4e4a9e1e3a0" * 2
    (tmp_path / "digests.json").write_text(json.dumps({"sha256": {"model.safetensors": sha, "config.json": sha}}))
    assert [line.split()[0] for line in lineage.model_findings(tmp_path)] == ["model.safetensors", "config.json"]
    (tmp_path / "digests.json").write_text("[]")
    assert "cannot be read" in lineage.model_findings(tmp_path)[0]
