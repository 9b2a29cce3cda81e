"""What is there is reused, what is not is made, and the reason is said. pytest tests/flows/test_plan.py"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import ledger, plan, recipes
from flows.recipes import Recipe
from tasks.artifacts import Built, Store, Workspace
from tasks.errors import UsageError
from tasks.sources import Source
from tests.flows.hollow import STAGES, actions, damage, make
from tests.flows.hollow import recipe as recipe
from tests.flows.hollow import store as store


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


def test_what_is_gone_comes_out_as_the_ledger_remembers_it(recipe: Recipe, store: Store, tmp_path: Path) -> None:
    make(recipe, store)
    with ledger.record(tmp_path, "tiny", "maskmill run tiny") as recorder:
        for verdict in plan.plan(recipe, store):
            recorder.stage(verdict.stage, "made", key=verdict.key, digest=verdict.digest)
    shutil.rmtree(store.folders("shards")[0])
    assert actions(plan.plan(recipe, store)) == ["reuse", "reuse", "run", "run", "run", "run"]
    known = plan.plan(recipe, store, tmp_path)
    assert actions(known)[:5] == ["reuse", "reuse", "run", "reuse", "reuse"]
    assert known[3].why == "up to date, as shards will come out as before"
    with ledger.record(tmp_path, "tiny", "maskmill run tiny") as recorder:  # once it came out otherwise
        recorder.stage("shards", "made", key=known[2].key, digest="another")
    assert actions(plan.plan(recipe, store, tmp_path))[:5] == ["reuse", "reuse", "run", "run", "run"]


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
        store.make(plan.identity_of(plan.parts(recipe)["vocabulary"], digests, store), killed)
    assert actions(plan.plan(recipe, store)) == ["reuse", "resume", "run", "run", "run", "run"]


def test_the_page_for_programs_is_json(recipe: Recipe, store: Store) -> None:
    page = json.loads(json.dumps(plan.page(plan.plan(recipe, store))))
    assert [it["stage"] for it in page] == STAGES
    assert set(page[0]) == {"stage", "action", "why", "key", "digest"}


def test_a_tokenizer_that_is_not_there_is_named_before_the_corpus_is_made(tmp_path: Path) -> None:
    recipe = recipes.load("tiny", [], [f"vocabulary.tokenizer={tmp_path / 'nosuch'}"])
    with pytest.raises(UsageError, match=r"vocabulary\.tokenizer: .*nosuch is no tokenizer\.json"):
        plan.plan(recipe, Store(tmp_path))


# Shorter rows.

WITH_LENGTHS = ["pretrain.lengths={lengths: [16, 24], at: [1/2, 0.75]}"]
PARTS = ["corpus", "vocabulary", "shards", "shards 16", "shards 24", "pretrain", "evaluate", "register"]


@pytest.fixture
def growing(recipe: Recipe) -> Recipe:
    return replace(recipes.load("tiny", overrides=WITH_LENGTHS), corpus=recipe.corpus)


def test_each_shorter_length_has_a_line_of_its_own(growing: Recipe, store: Store) -> None:
    verdicts = plan.plan(growing, store)
    assert [verdict.stage for verdict in verdicts] == PARTS == list(plan.parts(growing))
    assert verdicts[3].why == "its input corpus and vocabulary are not made yet"
    assert verdicts[5].why == "its input vocabulary and shards and shards 16 and shards 24 are not made yet"
    make(growing, store)
    assert actions(plan.plan(growing, store)) == ["reuse"] * 8
    assert len(store.folders("shards")) == 3


def test_a_recipe_that_gets_lengths_keeps_what_it_has(recipe: Recipe, growing: Recipe, store: Store) -> None:
    make(recipe, store)
    verdicts = plan.plan(growing, store)
    assert actions(verdicts) == ["reuse"] * 3 + ["run"] * 5
    assert verdicts[3].why == verdicts[4].why == "not made yet"
    make(growing, store, PARTS[:5])
    assert plan.plan(growing, store)[5].why == (
        'pretrain.lengths.at changed: [] → ["0.5", "0.75"]; pretrain.lengths.lengths changed: [] → [16, 24]; '
        "input added: shards_16, shards_24"
    )


def test_a_changed_setting_of_shards_makes_all_of_them_and_says_it_of_each(growing: Recipe, store: Store) -> None:
    make(growing, store)
    changed = replace(growing, shards=replace(growing.shards, seed=5))
    verdicts = plan.plan(changed, store)
    assert actions(verdicts) == ["reuse"] * 2 + ["run"] * 6
    assert {verdict.why for verdict in verdicts[2:5]} == {"shards.seed changed: 0 → 5"}
    longer = replace(growing, shards=replace(growing.shards, length=64))
    verdicts = plan.plan(longer, store)
    assert actions(verdicts) == ["reuse", "reuse", "run", "reuse", "reuse", "run", "run", "run"]
    assert verdicts[2].why == "shards.length changed: 32 → 64"


def test_a_damaged_one_is_named_and_the_others_are_kept(growing: Recipe, store: Store) -> None:
    make(growing, store)
    verdict = plan.plan(growing, store)[3]
    (store.root / "shards" / str(verdict.key) / "data").write_text("x")
    verdicts = plan.plan(growing, store)
    assert actions(verdicts) == ["reuse"] * 3 + ["run"] + ["reuse"] * 4
    assert verdicts[3].stage == "shards 16" and verdicts[3].why.startswith("damaged: ")


def test_from_shards_makes_all_shards_again(growing: Recipe, store: Store) -> None:
    make(growing, store)
    verdicts = plan.plan(growing, Store(store.root, forced=plan.forced_stages("shards")))
    assert actions(verdicts) == ["reuse"] * 2 + ["run"] * 6
