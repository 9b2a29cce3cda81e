"""Nothing that is needed goes, whatever the graph; what goes, goes whole; a kill in the middle costs nothing."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import packs, retention
from tasks.artifacts import Built, Identity, Manifest, Store, digest_of, load, verify
from tasks.errors import DataError

STAGES = ("corpus", "vocabulary", "shards", "pretrain", "evaluate", "register")
OLD = time.time() - 100 * 86400


def made(store, stage, number, inputs, old=True):
    """An artifact with some inputs; made long ago."""

    def build(work):
        (work.folder / "data").write_bytes(b"x" * 100)
        return Built({}, {})

    manifest = store.make(Identity(stage, 1, {"n": number}, inputs), build)[0]
    if old:
        os.utime(manifest.folder / "manifest.json", (OLD, OLD))
    return manifest


def written(store, stage, number, inputs, old=True):
    """What retention reads of an artifact, by hand: a hundred times as fast as an honest one."""
    digest = digest_of([stage, number, inputs])
    folder = store.root / stage / digest[:32]
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"x" * 100)
    (folder / "manifest.json").write_text(json.dumps({"digest": digest, "inputs": inputs}))
    os.utime(folder / "manifest.json", (OLD, OLD) if old else None)
    return Manifest(Identity(stage, 1, {}, inputs), {}, {}, {}, {}, digest, folder)


def planned(store, roots=(), keys=(), days=14.0, units=Path("nowhere")):
    return retention.plan(store, STAGES, dict.fromkeys(roots, "it"), keys, days, units)


def removed(store, found, wanted=lambda: set()):
    return [why for spare in found.spare if (why := retention.remove(store, spare, 14.0, wanted))]


def reachable(manifests, roots):
    """By another way than the one that is tested: until nothing is added."""
    found = set(roots)
    while True:
        more = {digest for one in manifests if one.digest in found for digest in one.identity.inputs.values()}
        if more <= found:
            return found
        found |= more


@st.composite
def graphs(draw):
    """Each artifact as (stage, numbers of the earlier ones that it was made from); which are roots, young, in a run."""
    size = draw(st.integers(1, 14))
    graph = []
    for number in range(size):
        inputs = draw(st.sets(st.integers(0, number - 1), max_size=4)) if number else set()
        graph.append((draw(st.sampled_from(STAGES)), sorted(inputs)))
    some = st.sets(st.integers(0, size - 1), max_size=3)
    return graph, draw(some), draw(some), draw(some)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_of_any_graph_exactly_what_nobody_needs_goes_and_the_rest_is_whole(tmp_path_factory, drawn):
    graph, roots, young, running = drawn
    store = Store(tmp_path_factory.mktemp("store"))
    each = []
    for number, (stage, inputs) in enumerate(graph):
        names = {f"input {one}": each[one].digest for one in inputs}
        each.append(written(store, stage, number, names, old=number not in young))
    wanted = [each[one].digest for one in roots]
    keys = [each[one].folder.name for one in running]
    found = planned(store, wanted, keys)
    stay = reachable(each, [*wanted, *(each[one].digest for one in young | running)])
    assert {spare.digest for spare in found.spare} == {one.digest for one in each} - stay
    assert not removed(store, found)
    for one in each:
        assert one.folder.exists() == (one.digest in stay)
        assert len(list(one.folder.glob("*"))) == 2 * (one.digest in stay)
    assert sum(number for number, _ in found.kept.values()) + len(found.spare) == len(each)
    assert not planned(store, wanted, keys).spare


def test_forks_champions_and_shorter_shards_are_followed_over_any_number_of_steps(tmp_path):
    store = Store(tmp_path)
    corpus = made(store, "corpus", 0, {"novels": "c" * 64})
    words = [made(store, "vocabulary", n, {"corpus": corpus.digest}) for n in range(2)]
    rows = [made(store, "shards", n, {"vocabulary": words[n % 2].digest}) for n in range(4)]
    root = made(store, "pretrain", 0, {"vocabulary": words[0].digest, "shards": rows[0].digest})
    champion = made(store, "pretrain", 1, {"vocabulary": words[1].digest, "shards": rows[1].digest})
    trained = {"shards": rows[0].digest, "shards_16": rows[2].digest, "fork": root.digest}
    weights = made(store, "pretrain", 2, trained)
    report = made(store, "evaluate", 0, {"pretrain": weights.digest, "champion": champion.digest})
    found = planned(store, [report.digest])
    assert [spare.path for spare in found.spare] == [rows[3].folder]


def test_what_a_registered_version_names_stays_although_what_was_between_is_gone(tmp_path):
    store = Store(tmp_path)
    corpus = made(store, "corpus", 0, {})
    words = made(store, "vocabulary", 0, {"corpus": corpus.digest})
    shutil.rmtree(words.folder)
    assert not planned(store, [words.digest, corpus.digest]).spare
    assert [spare.stage for spare in planned(store, [words.digest]).spare] == ["corpus"]


@pytest.mark.parametrize("damage", ["torn", "no object", "no inputs"])
def test_a_manifest_that_cannot_be_read_stops_it(tmp_path, damage):
    store = Store(tmp_path)
    one = made(store, "corpus", 0, {})
    text = {"torn": '{"digest"', "no object": "[]", "no inputs": '{"digest": "d"}'}[damage]
    (one.folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="nothing can be removed"):
        planned(store)


def test_a_damaged_artifact_still_says_what_it_was_made_from(tmp_path):
    store = Store(tmp_path)
    corpus = made(store, "corpus", 0, {})
    words = made(store, "vocabulary", 0, {"corpus": corpus.digest})
    (words.folder / "data").unlink()
    assert not planned(store, [words.digest]).spare


def test_what_is_held_is_skipped_and_said(tmp_path):
    store = Store(tmp_path)
    one, two = made(store, "corpus", 0, {}), made(store, "corpus", 1, {})
    with open(tmp_path / ".locks" / f"corpus-{one.key}") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = planned(store)
        assert [spare.key for spare in found.spare] == [two.key] and str(one.folder) in found.skipped[0]
        late = retention.Spare("corpus", "artifact", one.folder, 1, "", one.key, one.digest)
        assert "running process" in retention.remove(store, late, 14.0, set)
        assert one.folder.exists()
    assert len(planned(store).spare) == 2


@pytest.mark.parametrize("by", ["key", "digest"])
def test_what_a_run_wants_that_began_meanwhile_comes_back(tmp_path, by):
    store = Store(tmp_path)
    one = made(store, "corpus", 0, {})

    def wanted():
        assert not one.folder.exists(), "it is asked too early: a run could find the artifact after that"
        return {getattr(one, by)}

    assert removed(store, planned(store), wanted) == ["a run needs it"]
    assert verify(load(one.folder)) == [] and not list((tmp_path / "corpus").glob(".*"))


def partial(store, number, old):
    folder = store.partial(Identity("shards", 1, {"n": number}, {}))
    (folder / ".scratch").mkdir(parents=True)
    (folder / ".scratch" / "unit").write_bytes(b"y" * 10)
    for path in (folder / ".scratch" / "unit", folder / ".scratch", folder):
        os.utime(path, (OLD, OLD) if old else None)
    return folder


def test_unfinished_artifacts_go_once_nobody_goes_on_with_them(tmp_path):
    store = Store(tmp_path)
    old, new, again = partial(store, 1, True), partial(store, 2, False), partial(store, 3, True)
    litter = tmp_path / "shards" / f".{'a' * 32}.old-scratch"
    litter.mkdir()
    key = again.name[1:].partition(".")[0]
    found = planned(store, keys=[key])
    assert {(spare.what, spare.path) for spare in found.spare} == {("unfinished", old), ("litter", litter)}
    assert removed(store, found) == [] and not old.exists() and not litter.exists()
    assert new.exists() and again.exists()


def test_packs_and_units_go_once_nobody_has_used_them_for_long(tmp_path):
    folder = tmp_path / "corpus" / ".packs" / "how"
    for name, age in (("pack-a", OLD), ("pack-b", time.time())):
        (folder / name).mkdir(parents=True)
        (folder / name / "texts.arrow").write_bytes(b"z" * 7)
        (folder / f"{name}.receipt.json").write_text("{}")
        os.utime(folder / f"{name}.receipt.json", (age, age))
    units = tmp_path / "units"
    for name, age in (("u", OLD), ("v", time.time())):
        (units / name).mkdir(parents=True)
        os.utime(units / name, (age, age))
    store = Store(tmp_path)
    found = planned(store, units=units)
    assert [(spare.what, spare.bytes) for spare in found.spare] == [("pack", 7), ("unit", 0)]
    with packs._locked(folder / ".lock", fcntl.LOCK_SH):
        assert removed(store, found)[0] == "a running process uses it" and (folder / "pack-a").exists()
    assert removed(store, found) == []
    assert {path.name for path in folder.glob("pack-*")} == {"pack-b", "pack-b.receipt.json"}
    assert [path.name for path in units.iterdir()] == ["v"]


KILLED = """
import os, signal, shutil, sys
from pathlib import Path
from tasks import retention
from tasks.artifacts import Store
when = int(sys.argv[2])
def rmtree(path, *_, **__):
    for number, file in enumerate(sorted(Path(path).rglob("*"), reverse=True)):
        if number == when:
            os.kill(os.getpid(), signal.SIGKILL)
        file.unlink() if file.is_file() else file.rmdir()
    os.kill(os.getpid(), signal.SIGKILL)
shutil.rmtree = rmtree
store = Store(Path(sys.argv[1]))
found = retention.plan(store, ("corpus",), {}, (), 14.0, Path("nowhere"))
retention.remove(store, found.spare[0], 14.0, set)
"""


@pytest.mark.parametrize("when", [0, 1])
def test_a_kill_in_the_middle_leaves_a_store_on_which_a_run_works(tmp_path, when):
    store = Store(tmp_path)
    one = made(store, "corpus", 0, {})
    words = [sys.executable, "-c", KILLED, str(tmp_path), str(when)]
    assert subprocess.run(words, cwd=Path(__file__).parents[2], check=False).returncode == -9
    assert not one.folder.exists() and len(list((tmp_path / "corpus").glob(".*old-removed*"))) == 1
    assert store.folders("corpus") == [] and store.find(one.identity) is None
    found = planned(store)
    assert [spare.what for spare in found.spare] == ["litter"]
    if when:
        assert removed(store, found) == []
    again = made(store, "corpus", 0, {})  # a run also sweeps what was left
    assert again.digest == one.digest and verify(again) == [] and not list((tmp_path / "corpus").glob(".*"))
