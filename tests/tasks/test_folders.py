"""python -m pytest tests/tasks/test_folders.py"""

import glob
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import folders
from tasks.errors import UsageError
from tests.tasks.made_files import put

NAMES = st.sampled_from(["a", "b", "ab.txt", "a.md", "c.txt"])


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "~\0/x", "~", "", "a/~", "~root"])
def test_a_user_that_is_none_is_part_of_a_name(path: str) -> None:
    known = {"~": os.path.expanduser("~"), "~root": os.path.expanduser("~root")}
    assert folders.expanded(path) == known.get(path, path)


def names(found: folders.Found) -> list[str]:
    return [path.relative_to(found.root).as_posix() for path in found.files]


def test_a_folder_is_walked_in_order_and_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    for name in ("in/b/two.txt", "in/a/one.md", "in/z.txt", "in/.git/x.txt", "in/.rc", "out/secret.txt"):
        put(tmp_path / name, name)
    os.symlink(tmp_path / "out", tmp_path / "in" / "linked")
    os.symlink("../out/secret.txt", tmp_path / "in" / "stolen.txt")
    os.symlink("a/one.md", tmp_path / "in" / "same.md")
    os.symlink("loop.txt", tmp_path / "in" / "loop.txt")
    os.symlink(".", tmp_path / "in" / "b" / "round")
    found = folders.find(str(tmp_path / "in"))
    assert names(found) == ["loop.txt", "same.md", "z.txt", "a/one.md", "b/two.txt"]
    assert found.passed == {"(hidden)": 2, "(linked folder)": 2, "(outside the folder)": 1}
    os.symlink(tmp_path / "in", tmp_path / "door")
    assert names(folders.find(str(tmp_path / "door"))) == names(found)


@given(
    st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=8),
    st.lists(st.sampled_from(["*", "**", "a*", "*.txt", "[ab]*", "a"]), min_size=1, max_size=3),
)
def test_a_glob_finds_what_python_finds_and_what_lies_below(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[str]], pattern: list[str]
) -> None:
    root = tmp_path_factory.mktemp("glob")
    pattern += ["*"] * (pattern[-1] == "**")  # whether x/** is x too, Python answers in two ways
    for parts in files:
        path = root.joinpath(*parts)
        if not path.exists() and not any(above.is_file() for above in path.parents):
            put(path, "x")
    matches = {Path(one) for one in glob.glob(str(root.joinpath(*pattern)), recursive=True)}
    below = {path for path in root.rglob("*") if path.is_file() and matches & {path, *path.parents}}
    if not glob.has_magic("/".join(pattern)):
        return
    top = folders.static_part(root.joinpath(*pattern))
    if top.is_dir():
        assert set(folders.find(str(root.joinpath(*pattern))).files) == below


def test_links_that_lead_round_and_round_do_not_keep_a_glob_busy(tmp_path: Path) -> None:
    put(tmp_path / "a" / "one.txt", "x")
    for name in ("p", "q", "r"):  # Python's glob would go 3**40 ways
        os.symlink("..", tmp_path / "a" / name)
    found = folders.find(str(tmp_path / "**" / "*.txt"))
    assert names(found) == ["a/one.txt"] and found.passed == {"(linked folder)": 3}


def test_two_stars_at_the_end_are_all_that_lies_below(tmp_path: Path) -> None:
    for name in ("one.txt", "a/two.txt", "a/b/three.md"):
        put(tmp_path / name, "x")
    assert names(folders.find(str(tmp_path / "**"))) == ["one.txt", "a/two.txt", "a/b/three.md"]
    assert names(folders.find(str(tmp_path / "*" / "**"))) == ["a/two.txt", "a/b/three.md"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(tmp_path: Path) -> None:
    path = put(tmp_path / "a[1].txt", "x")
    assert folders.find(str(path)).files == [path]


def test_what_is_neither_file_nor_folder_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind("sock")
    expected = {
        "pipe": "is a named pipe",
        "sock": "is a socket",
        "/dev/null": "is a device",
        "dangling": "is a link to nowhere, which leads nowhere",
        "loop": "leads nowhere",
        "missing": "does not exist",
        "missing/*.txt": "does not exist",
        "nul\0": "does not exist",
        "~nobody-of-that-name/x": "does not exist",
    }
    for uri, said in expected.items():
        with pytest.raises(UsageError) as error:
            folders.find(uri)
        assert said in str(error.value) and "\n" not in str(error.value)
    bound.close()


def test_a_folder_that_cannot_be_opened_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a" / "one.txt", "x")
    put(tmp_path / "b" / "two.txt", "x")
    scan = os.scandir

    def scandir(path: str) -> object:  # root may open everything, so a mode would prove nothing
        if path.endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = folders.find(str(tmp_path))
    assert names(found) == ["b/two.txt"] and found.passed == {"(unreadable folder)": 1}
