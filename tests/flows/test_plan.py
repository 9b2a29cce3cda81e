import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import plan, recipes
from flows.plan import Verdict
from flows.recipes import Recipe
from tasks.artifacts import Built, Store, Workspace
from tasks.errors import UsageError
from tasks.sources import Source

STAGES = list(plan.INPUTS)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A text of a few words.")
    return recipes.load("tiny", sources=[str(tmp_path / "texts")])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(recipe: Recipe, store: Store, stages: list[str] = STAGES) -> None:
    """Artifacts under the identities of the real stages, with a small file in place of their contents."""
    digests: dict[str, str] = {}
    for stage in stages:
        identity = plan.identity_of(stage, recipe, digests, store, None)

        def build(workspace: Workspace, key: str = identity.key) -> Built:
            (workspace.folder / "data").write_text(key)
            return Built({}, {})

        digests[stage] = store.make(identity, build)[0].digest


def actions(verdicts: list[Verdict]) -> list[str]:
    return [verdict.action for verdict in verdicts]


def damage(store: Store, stage: str) -> Path:
    (folder,) = store.folders(stage)
    path = folder / "data"
    path.write_text("x")
    return path


def test_in_an_empty_store_all_is_made(recipe: Recipe, store: Store) -> None:
    verdicts = plan.plan(recipe, store)
    assert actions(verdicts) == ["run"] * 6
    assert verdicts[0].why == "not made yet"
    assert verdicts[1].why == "its input corpus is not made yet"
    assert verdicts[2].why == "its input corpus and vocabulary are not made yet"
    assert not store.folders("corpus")


def test_what_is_there_is_reused(recipe: Recipe, store: Store) -> None:
    make(recipe, store)
    verdicts = plan.plan(recipe, store)
    assert actions(verdicts) == ["reuse"] * 6
    assert all(verdict.digest and verdict.key for verdict in verdicts)


@pytest.mark.parametrize(
    ("override", "first", "why"),
    [
        ("vocabulary.size=400", "vocabulary", "vocabulary.size changed: 384 → 400"),
        ("shards.rate=0.15", "shards", "shards.rate changed: 0.3 → 0.15"),
        ("pretrain.steps=21", "pretrain", "pretrain.steps changed: 20 → 21"),
        ("evaluate.max_rows=65", "evaluate", "evaluate.max_rows changed: 64 → 65"),
    ],
)
def test_a_changed_setting_makes_its_stage_and_what_follows(
    recipe: Recipe, store: Store, override: str, first: str, why: str
) -> None:
    make(recipe, store)
    changed = replace(recipes.load("tiny", overrides=[override]), corpus=recipe.corpus)
    verdicts = plan.plan(changed, store)
    at = STAGES.index(first)
    assert actions(verdicts) == ["reuse"] * at + ["run"] * (6 - at)
    assert verdicts[at].why == why
    assert all(verdict.why.endswith("made again") for verdict in verdicts[at + 1 :])


def test_a_setting_that_cannot_change_the_bytes_makes_nothing(recipe: Recipe, store: Store) -> None:
    make(recipe, store)
    changed = replace(recipe, pretrain=replace(recipe.pretrain, checkpoint_every=99))
    assert actions(plan.plan(changed, store)) == ["reuse"] * 6


def test_the_reason_compares_with_the_closest_artifact(recipe: Recipe, store: Store) -> None:
    make(recipe, store)
    far = replace(recipe, pretrain=replace(recipe.pretrain, steps=99, layers=3, seed=5))
    make(far, store)
    near = replace(recipe, pretrain=replace(recipe.pretrain, steps=21))
    assert plan.plan(near, store)[3].why == "pretrain.steps changed: 20 → 21"


def test_changed_text_is_seen(recipe: Recipe, store: Store, tmp_path: Path) -> None:
    make(recipe, store)
    (tmp_path / "texts" / "a.txt").write_text("Another text of a few words.")
    first = plan.plan(recipe, store)[0]
    assert first.action == "run" and "changed" in first.why


def corpus_of(recipe: Recipe, *sources: Source) -> Recipe:
    return replace(recipe, corpus=replace(recipe.corpus, sources=sources))


def test_a_changed_source_is_named_with_the_key_that_differs(recipe: Recipe, store: Store, tmp_path: Path) -> None:
    texts = Source(str(tmp_path / "texts"), name="texts", text_key="body")
    (tmp_path / "more.txt").write_text("More text of a few words.")
    more = Source(str(tmp_path / "more.txt"), name="more")
    make(corpus_of(recipe, texts, more), store, ["corpus"])

    def why(*sources: Source) -> str:
        return plan.plan(corpus_of(recipe, *sources), store)[0].why

    assert why(texts, more) == "up to date"
    assert why(replace(texts, text_key="text"), more) == "corpus.sources.texts.text_key changed: body → text"
    assert why(texts) == "corpus.sources.more is gone; input removed: more"
    last = Source(str(tmp_path / "more.txt"), name="last")
    assert why(texts, more, last) == "corpus.sources.last is new; input added: last"
    assert why(more, texts) == "corpus: its sources come in another order"
    (tmp_path / "more.txt").write_text("Other text of a few words.")
    assert why(texts, more) == "input changed: more"


@given(st.text(min_size=1), st.text(), st.text())
def test_two_values_that_differ_are_never_shown_alike(begin: str, old: str, new: str) -> None:
    old, new = begin * 9 + old, begin * 9 + new
    if old == new:
        return
    first, second = plan._side_by_side(old, new)
    assert first != second
    assert max(len(first), len(second)) <= plan.LONGEST


def test_a_runner_that_is_not_installed_is_said_before_anything_runs(
    recipe: Recipe, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.runners, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"runner: dask needs prefect_dask and distributed; pip install"):
        plan.plan(replace(recipe, runner="dask"), store)
    plan.plan(recipe, store)


def test_who_works_does_not_change_what_is_made(recipe: Recipe, store: Store) -> None:
    make(recipe, store)
    assert actions(plan.plan(replace(recipe, runner="dask"), store)) == ["reuse"] * 6


def test_a_damaged_artifact_is_named_and_what_follows_it_is_kept(recipe: Recipe, store: Store) -> None:
    make(recipe, store)
    path = damage(store, "shards")
    verdicts = plan.plan(recipe, store)
    assert actions(verdicts) == ["reuse", "reuse", "run", "reuse", "reuse", "reuse"]
    assert verdicts[2].why.startswith("damaged: ") and str(path) in verdicts[2].why


def test_without_its_manifest_a_damaged_artifact_takes_its_followers_along(recipe: Recipe, store: Store) -> None:
    make(recipe, store)
    (store.folders("shards")[0] / "manifest.json").write_text("{}")
    assert actions(plan.plan(recipe, store)) == ["reuse", "reuse", "run", "run", "run", "run"]


@pytest.mark.parametrize("first", STAGES)
def test_from_makes_a_stage_and_what_follows(recipe: Recipe, store: Store, first: str) -> None:
    make(recipe, store)
    verdicts = plan.plan(recipe, Store(store.root, forced=plan.forced_stages(first)))
    at = STAGES.index(first)
    assert actions(verdicts) == ["reuse"] * at + ["run"] * (6 - at)
    assert all(verdict.why == "forced by --from" for verdict in verdicts[at:])


def test_unfinished_work_is_gone_on_with(recipe: Recipe, store: Store) -> None:
    def killed(workspace: Workspace) -> Built:
        (workspace.scratch / "unit").write_text("half")
        raise KeyboardInterrupt

    make(recipe, store, ["corpus"])
    digests = {"corpus": plan.plan(recipe, store)[0].digest or ""}
    with pytest.raises(KeyboardInterrupt):
        store.make(plan.identity_of("vocabulary", recipe, digests, store, None), killed)
    assert actions(plan.plan(recipe, store)) == ["reuse", "resume", "run", "run", "run", "run"]


def test_the_page_for_programs_is_json(recipe: Recipe, store: Store) -> None:
    page = json.loads(json.dumps(plan.page(plan.plan(recipe, store))))
    assert [it["stage"] for it in page] == STAGES
    assert set(page[0]) == {"stage", "action", "why", "key", "digest"}


def test_a_tokenizer_that_is_not_there_is_named_before_the_corpus_is_made(tmp_path: Path) -> None:
    recipe = recipes.load("tiny", [], [f"vocabulary.tokenizer={tmp_path / 'nosuch'}"])
    with pytest.raises(UsageError, match=r"vocabulary\.tokenizer: .*nosuch is no tokenizer\.json"):
        plan.plan(recipe, Store(tmp_path))
