"""The registry's copy of a model: what is damaged there is seen, and written again."""

from pathlib import Path

import pytest

from tasks import copies
from tasks.artifacts import Built, Identity, Manifest, Store, Workspace
from tasks.errors import DataError


def made(store: Store, stage: str, files: dict[str, bytes]) -> Manifest:
    def build(work: Workspace) -> Built:
        for name, data in files.items():
            (work.folder / name).parent.mkdir(exist_ok=True)
            (work.folder / name).write_bytes(data)
        return Built({}, {})

    return store.make(Identity(stage, 1, {}, {}), build)[0]


@pytest.fixture
def given(tmp_path: Path) -> tuple[Manifest, Manifest, Path]:
    store = Store(tmp_path / "store")
    register = made(store, "register", {"model/weights": b"w" * 100, "served.py": b"code"})
    report = made(store, "evaluate", {"scores.arrow": b"s" * 50})
    copy = tmp_path / "mlartifacts" / "models" / "m-1" / "artifacts"
    for name, data in {
        "artifacts/model/weights": b"w" * 100,
        "served.py": b"code",
        "MLmodel": b"flavors:",
        "evidence/scores.arrow": b"s" * 50,
        "large": b"l" * (copies.LARGEST + 1),
    }.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    copies.remember(register, report, copy)
    return register, report, copy


@pytest.mark.parametrize("name", ["artifacts/model/weights", "served.py", "MLmodel", "evidence/scores.arrow"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_what_is_damaged_is_written_again(given: tuple[Manifest, Manifest, Path], name: str, damage: str) -> None:
    register, report, copy = given
    before = (copy / name).read_bytes()
    if damage == "gone":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(before[:-1] if damage == "cut" else bytes([before[0] ^ 1]) + before[1:])
    assert list(copies.damaged(register, whole=True)) == [copy / name]
    assert list(copies.damaged(register, whole=False)) == ([] if damage == "flipped" else [copy / name])
    assert copies.mend(register, report, whole=True) and (copy / name).read_bytes() == before
    assert not copies.damaged(register, whole=True)


def test_what_nobody_has_any_more_is_refused_by_name(given: tuple[Manifest, Manifest, Path]) -> None:
    register, report, copy = given
    (copy / "large").write_bytes(b"")
    with pytest.raises(DataError, match="large is damaged"):
        copies.mend(register, report, whole=False)


def test_a_copy_is_as_the_artifact_when_it_is_written_down(given: tuple[Manifest, Manifest, Path]) -> None:
    register, report, copy = given
    copies.record(register).write_bytes(b"{}")
    (copy / "served.py").write_bytes(b"evil")
    assert copies.mend(register, report, whole=False) is False
    copies.remember(register, report, copy)
    assert (copy / "served.py").read_bytes() == b"code" and not copies.damaged(register, whole=True)


def test_a_copy_that_is_somewhere_else_is_left_alone(given: tuple[Manifest, Manifest, Path], tmp_path: Path) -> None:
    register, report, copy = given
    copy.rename(tmp_path / "moved")
    assert not copies.damaged(register, whole=True) and copies.mend(register, report, whole=True)
    assert copies.folder_of("s3://bucket/m-1") is None and copies.folder_of(str(copy)) is None
    assert copies.folder_of((tmp_path / "moved").as_uri()) == tmp_path / "moved"
