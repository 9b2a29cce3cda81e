"""A plan of a fork, and of what training would refuse. pytest tests/flows/test_plan_forks.py"""

from dataclasses import replace
from pathlib import Path

import pytest

from flows import plan, recipes
from flows.recipes import Recipe
from tasks.artifacts import Store
from tasks.errors import UsageError
from tests.flows.hollow import STAGES, actions, forked, make
from tests.flows.hollow import recipe as recipe
from tests.flows.hollow import store as store


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
