import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import forks, ledger, plan, recipes
from flows.plan import Verdict
from flows.recipes import Recipe
from tasks import remote_store
from tasks.artifacts import Built, Manifest, Store, Workspace, load
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


def make(recipe: Recipe, store: Store, stages: list[str] | None = None, stable: list[int] | None = None) -> Manifest:
    """Artifacts under the identities of the real stages, with a small file in place of their contents. The last one."""
    digests: dict[str, str] = {}
    forked = forks.find(recipe.pretrain.fork, store)
    for name, part in plan.parts(recipe).items():
        if name not in (stages or plan.parts(recipe)):
            continue
        identity = plan.identity_of(part, digests, store, fork=forked)
        facts: dict[str, Any] = {
            "length": getattr(part.config, "length", 0),
            "splits": {"train": {"rows": 96, "tokens": 96 * 28}},
        }
        facts["stable"] = [
            {"step": step, "positions": step * 512, "tokens": step * 448, "samples": {}} for step in stable or []
        ]

        def build(workspace: Workspace, key: str = identity.key, facts: dict[str, Any] = facts) -> Built:
            (workspace.folder / "data").write_text(key)
            return Built({}, facts)

        manifest = store.make(identity, build)[0]
        digests[name] = manifest.digest
    return manifest


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


# Forks.


def forked(recipe: Recipe, fork: str) -> Recipe:
    return replace(recipe, pretrain=replace(recipe.pretrain, fork=fork, steps=40))


def test_a_fork_is_an_input_of_its_weights_by_digest_however_it_is_named(recipe: Recipe, store: Store) -> None:
    weights = make(recipe, store, STAGES[:4], stable=[7, 14])
    names = [weights.key, weights.key[:6], weights.key[:6].upper(), str(weights.folder)]
    keys = {plan.plan(forked(recipe, name + last), store)[3].key for name in names for last in ("", "@14")}
    first = {plan.plan(forked(recipe, f"{name}@7"), store)[3].key for name in names}
    assert len(keys) == len(first) == 1 and keys != first
    verdict = plan.plan(forked(recipe, weights.key), store)[3]
    assert verdict.action == "run" and "input added: fork" in verdict.why
    make(forked(recipe, weights.key), store, stable=[21])
    assert actions(plan.plan(forked(recipe, str(weights.folder)), store)) == ["reuse"] * 6


def test_a_fork_that_does_not_exist_is_refused_before_anything_runs_and_what_exists_is_named(
    recipe: Recipe, store: Store, tmp_path: Path
) -> None:
    def refused(fork: str) -> str:
        with pytest.raises(UsageError) as caught:
            plan.plan(forked(recipe, fork), store)
        return str(caught.value)

    assert refused("abc") == "pretrain.fork: no pretrain artifact has a key that begins with 'abc'; there are none yet."
    plain = make(recipe, store, STAGES[:4])
    assert "has no stable checkpoints; make it again with pretrain.stable_checkpoints" in refused(plain.key)
    others = [
        make(replace(recipe, pretrain=replace(recipe.pretrain, seed=seed)), store, STAGES[:4], stable=[7, seed])
        for seed in range(20, 37)
    ]
    assert f"no pretrain artifact has a key that begins with 'z'; there are {others[-1].key[:12]} (stable" in refused(
        "z"
    )
    assert refused("z").endswith(" and 13 older.")
    stable = f"{others[0].key[:12]} (stable after steps 7, 20)"
    assert refused(f"{others[0].key}@9") == f"pretrain.fork: {stable} has no checkpoint after step 9; use one of these."
    first = [one.key[0] for one in (plain, *others)]
    twice = next(digit for digit in first if first.count(digit) > 1)  # 18 keys, 16 digits
    assert f"{first.count(twice)} keys begin with '{twice}'" in refused(twice)
    assert f"{tmp_path / 'nothing'} is no whole artifact: " in refused(str(tmp_path / "nothing"))
    assert "is an artifact of shards; give one of pretrain" in refused(str(store.folders("shards")[0]))


# What training would refuse is refused before the corpus is made.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["width=64"], r"pretrain\.width is 64, and that of the run in pretrain\.fork is 32"),
        (["size=base"], r"pretrain\.layers is 22, and that of the run in pretrain\.fork is 2;"),
        (["optimizer=adamw"], r"pretrain\.optimizer is adamw"),
        (["steps=14"], r"pretrain\.steps is 14, and the run that this one is forked from had 14 by then"),
        (["steps=0", "tokens=6272"], r"pretrain\.tokens is 6,272, and .* had 6,272 by then; set more"),
        (
            ["stable_checkpoints=20"],
            r"pretrain\.stable_checkpoints is 20, and the stable phase has 14 steps; use fewer",
        ),
    ],
)
def test_a_fork_that_training_would_refuse_is_refused_in_an_empty_store(
    recipe: Recipe, store: Store, tmp_path: Path, settings: list[str], words: str
) -> None:
    weights = make(recipe, store, STAGES[:4], stable=[7, 14])
    given = [f"pretrain.fork={weights.folder}", "pretrain.steps=40", *(f"pretrain.{one}" for one in settings)]
    plan.plan(replace(recipes.load("tiny", overrides=given[:2]), corpus=recipe.corpus), Store(tmp_path / "empty"))
    with pytest.raises(UsageError, match=words):
        plan.plan(replace(recipes.load("tiny", overrides=given), corpus=recipe.corpus), Store(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["stable_checkpoints=20"], r"the stable phase has 13 steps; use fewer"),
        (["batch_tokens=64", "devices=3"], r"pretrain\.batch_tokens is 64, 2 rows of 32, and there are 3 ranks"),
        (["batch_warmup.start=32", "devices=2"], r"batch_warmup\.start is 32, 1 rows of 32, and there are 2 ranks"),
        (["reduction=exact", "logical_shards=8", "nodes='3:3'", "rendezvous=a:1"], r"logical_shards is 8, .* 3 ranks"),
        (["rope_local=1"], r"pretrain\.rope_local is 1\.0; use a number above 1"),
    ],
)
def test_settings_with_which_no_training_could_begin_are_refused_in_an_empty_store(
    recipe: Recipe, store: Store, settings: list[str], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        given = ["pretrain.device=cpu", *(f"pretrain.{one}" for one in settings)]
        plan.plan(replace(recipes.load("tiny", overrides=given), corpus=recipe.corpus), store)


def test_with_shards_at_hand_a_budget_in_tokens_is_checked_too_and_so_is_the_vocabulary_of_a_fork(
    recipe: Recipe, store: Store
) -> None:
    other = replace(recipe, vocabulary=replace(recipe.vocabulary, size=400))
    weights = make(other, store, STAGES[:4], stable=[7])
    make(recipe, store, STAGES[:2])
    with pytest.raises(UsageError, match=r"the pretrain artifact .* was made with the vocabulary"):
        plan.plan(forked(recipe, weights.key), store)
    tokens = replace(recipe, pretrain=replace(recipe.pretrain, steps=0, tokens=20 * 448, stable_checkpoints=14))
    plan.plan(tokens, store)  # how many steps that are is not known yet
    make(recipe, store, STAGES[:3])
    with pytest.raises(UsageError, match=r"stable_checkpoints is 14, and the stable phase has 13 steps"):
        plan.plan(tokens, store)


# With a remote.


@pytest.fixture
def shared(tmp_path: Path) -> str:
    (tmp_path / "shared").mkdir()
    return f"file://{tmp_path}/shared"


def done(recipe: Recipe, store: Store) -> list[str]:
    """What a run does with each part, in the words of its summary."""
    digests: dict[str, str] = {}
    said = []
    for name, part in plan.parts(recipe).items():
        identity = plan.identity_of(part, digests, store)

        def build(workspace: Workspace, key: str = identity.key) -> Built:
            (workspace.folder / "data").write_text(key)
            return Built({}, {"length": 32, "splits": {"train": {"rows": 96, "tokens": 96 * 28}}})

        manifest, found = store.make(identity, build)
        digests[name] = manifest.digest
        said.append(plan.outcome(store, manifest, found))
    return said


@pytest.mark.parametrize("there", [0, 1, 3, 5])
@pytest.mark.parametrize("here", [0, 2, 5])
def test_what_a_remote_has_is_fetched_as_the_plan_says(
    recipe: Recipe, tmp_path: Path, shared: str, here: int, there: int
) -> None:
    if there:
        make(recipe, Store(tmp_path / "a", remote=remote_store.at(shared)), STAGES[:there])
    if here:
        make(recipe, Store(tmp_path / "b"), STAGES[:here])
    verdicts = plan.plan(recipe, Store(tmp_path / "b", remote=remote_store.at(shared)))
    expected = ["reuse"] * here + ["fetch"] * (there - here)
    assert actions(verdicts) == expected + ["run"] * (6 - len(expected))
    words = {"reuse": "reused", "fetch": "fetched", "run": "made"}
    assert done(recipe, Store(tmp_path / "b", remote=remote_store.at(shared))) == [
        words[action] for action in actions(verdicts)
    ]
    assert all(f"in the remote {shared}, 0.0 MB" in one.why for one in verdicts if one.action == "fetch")


def test_a_damaged_artifact_is_fetched_where_it_can_be(recipe: Recipe, tmp_path: Path, shared: str) -> None:
    store = Store(tmp_path / "a", remote=remote_store.at(shared))
    make(recipe, store)
    path = damage(store, "shards")
    verdict = plan.plan(recipe, Store(tmp_path / "a", remote=remote_store.at(shared)))[2]
    assert verdict.action == "fetch" and str(path) in verdict.why and "; in the remote file://" in verdict.why
    assert actions(plan.plan(recipe, Store(tmp_path / "a", forced=plan.forced_stages("corpus")))) == ["run"] * 6


def test_a_report_is_found_in_the_remote_whoever_was_the_rival(recipe: Recipe, tmp_path: Path, shared: str) -> None:
    store = Store(tmp_path / "a", remote=remote_store.at(shared))
    make(recipe, store, STAGES[:4])
    digests = {stage: store.folders(stage)[0] for stage in STAGES[:4]}
    known = {stage: load(folder).digest for stage, folder in digests.items()}
    part = plan.parts(recipe)["evaluate"]
    store.make(plan.identity_of(part, known, store, "cd" * 32), lambda work: Built({}, {}))
    verdicts = plan.plan(recipe, Store(tmp_path / "b", remote=remote_store.at(shared)))
    assert actions(verdicts) == ["fetch"] * 5 + ["run"]


def test_a_run_is_forked_from_one_that_another_machine_trained(recipe: Recipe, tmp_path: Path, shared: str) -> None:
    weights = make(recipe, Store(tmp_path / "a", remote=remote_store.at(shared)), STAGES[:4], stable=[8])
    here = Store(tmp_path / "b", remote=remote_store.at(shared))
    child = forked(recipe, f"{weights.key[:12]}@8")
    assert actions(plan.plan(child, here)) == ["fetch"] * 3 + ["run"] * 3
    assert not here.folders("pretrain"), "a plan fetches nothing"
    found = here.with_digest("pretrain", weights.digest)
    assert found and forks.find(child.pretrain.fork, here) == found
    with pytest.raises(UsageError, match="no pretrain artifact has a key that begins with"):
        plan.plan(forked(recipe, "0000@8"), Store(tmp_path / "b", remote=remote_store.at(shared)))
