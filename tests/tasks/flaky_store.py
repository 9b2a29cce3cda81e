"""Files in memory that fail at a chosen operation, and stores that share them. Shared by several test modules."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tasks.artifacts import Built, Identity, Manifest, Store, Workspace, load, verify
from tasks.remote_store import at

WHAT = Identity("shards", 1, {"rate": "0.3"}, {"corpus": "ab" * 32})
URL = "flaky://bucket/mill"


class Killed(BaseException):
    """As kill -9: nothing after it is done."""


class Flaky(MemoryFileSystem):
    """Files in memory, where the k-th operation goes wrong: before it (so after the one before), or in its middle."""

    protocol = "flaky"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    done = 0
    wrong: Callable[[], None] | None = None
    at, where = 0, "before"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("flaky://")))

    @classmethod
    def fresh(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.calm()

    @classmethod
    def calm(cls) -> int:
        """Nothing goes wrong from now on. How many operations there were."""
        done, cls.done, cls.wrong, cls.at = cls.done, 0, None, 0
        return done

    @classmethod
    def breaks(cls, wrong: Callable[[], None], at: int, where: str = "before") -> None:
        cls.done, cls.wrong, cls.at, cls.where = 0, wrong, at, where

    def _step(self, operation: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        cls = type(self)
        cls.done += 1
        if cls.wrong is None or (cls.done != cls.at and cls.at > 0):
            return operation()
        if cls.where == "middle" and half:
            half()
        cls.wrong()
        return operation()

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return self._step(lambda: super(Flaky, self).ls(path, detail, **options))

    def cat_file(self, path: str, *where: Any, **options: Any) -> Any:
        return self._step(lambda: super(Flaky, self).cat_file(path, *where, **options))

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        whole = super().pipe_file
        self._step(lambda: whole(path, value), lambda: whole(path, value[: len(value) // 2]))

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        data = Path(lpath).read_bytes()
        whole = super().pipe_file
        self._step(lambda: whole(rpath, data), lambda: whole(rpath, data[: len(data) // 2]))

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        def write(share: int) -> None:
            data = MemoryFileSystem.cat_file(self, rpath)
            Path(lpath).write_bytes(data[: len(data) // share])

        self._step(lambda: write(1), lambda: write(2))


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture(autouse=True)
def bucket() -> Iterator[None]:
    Flaky.fresh()
    yield
    Flaky.fresh()


def kill() -> None:
    raise Killed


def hang_up() -> None:
    raise ConnectionResetError(104, "Connection reset by peer")


def build(work: Workspace, text: str = "tokens") -> Built:
    (work.folder / "deep").mkdir(exist_ok=True)
    (work.folder / "deep" / "a.bin").write_bytes(bytes(range(256)) * 8)
    (work.folder / "b.txt").write_text(f"{text}\n")
    (work.folder / "empty").write_bytes(b"")
    (work.folder / "measured.metrics.jsonl").write_text('{"step": 1}\n')
    (work.folder / "measured.sources.jsonl").write_text('{"path": "where it lay here"}\n')
    return Built({"documents_in": 3}, {"length": 64}, {"peak": 7})


def never(work: Workspace) -> Built:
    pytest.fail("made, although the remote has it")


def store(home: Path, url: str = URL, forced: bool = False, wait: float = 5) -> Store:
    return Store(home, wait, frozenset({"shards"}) if forced else frozenset(), at(url))


@pytest.fixture
def whole(tmp_path: Path) -> Manifest:
    """The artifact as nobody disturbed it."""
    return Store(tmp_path / "undisturbed").make(WHAT, build)[0]


def sound(manifest: Manifest, digest: str) -> bool:
    return manifest.digest == digest and verify(load(manifest.folder)) == []


def unlittered(home: Path) -> bool:
    return not list((home / "shards").glob(".*"))


def other(work: Workspace) -> Built:
    return build(work, "other tokens")
