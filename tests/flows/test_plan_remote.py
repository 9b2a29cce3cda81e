"""A plan where a remote has some of it: what is there is fetched. pytest tests/flows/test_plan_remote.py"""

from pathlib import Path

import pytest

from flows import forks, plan
from flows.recipes import Recipe
from tasks import remote_store
from tasks.artifacts import Built, Store, Workspace, load
from tasks.errors import UsageError
from tests.flows.hollow import STAGES, actions, damage, forked, make
from tests.flows.hollow import recipe as recipe


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
