"""Artifacts: content-addressed, atomic, verifiable. The only way in which stages meet.

    store/<stage>/<key>/            key = digest(stage, VERSION, config, digests of the inputs)
        manifest.json               written last: files with size and sha256, counts, facts, inputs, config
        measured.json               what depends on the clock or the machine: outside the digest

A folder with a manifest is complete; one without does not exist. What is being made lives in a hidden sibling,
`.<key>.partial`, which survives a kill, so that the next run goes on from its finished units (`.scratch`).
Publishing is: write, fsync every file, manifest last, fsync, rename, fsync the parent. None of torch.save, pyarrow and
safetensors calls fsync, so the protocol is ours.

A store may have a remote (remote_store.py), which machines share: what is not here, but there, is fetched instead of
made, and what is made, or only here, is pushed. What is here and whole is used as it is.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import NO_SPACE, DataError, HeldError, MemoryExhausted, UnreachableError, is_out_of_memory, of_disk
from .manifests import (
    DAMAGED,
    MANIFEST,
    MEASURED,
    SCRATCH,
    FileEntry,
    Identity,
    Manifest,
    body_of,
    canonical,
    check_parent,
    digest_of,
    file_digest,
    fsync,
    load,
    mark,
    names_in,
    page,
    read_sealed,
    save_array,
    sealed,
    size_of,
    verify,
    versions_of,
    write_atomic,
)
from .progress import say

if TYPE_CHECKING:
    from .remote_store import Offer, Remote

__all__ = [
    "MANIFEST",
    "NO_SPACE",
    "SCRATCH",
    "Built",
    "FileEntry",
    "Identity",
    "Manifest",
    "Store",
    "Workspace",
    "canonical",
    "check_parent",
    "digest_of",
    "file_digest",
    "finish_unit",
    "finished_unit",
    "fsync",
    "load",
    "mark",
    "save_array",
    "verify",
    "write_atomic",
]

STAYS = {"register"}
"""Stages whose artifacts do not go to a remote: copied together in seconds from what does, and MLflow keeps them."""


# Units: what a killed stage does not have to make again.


def finish_unit(scratch: Path, name: str, files: Sequence[Path], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Marks a unit of work (a source file, a block of shards) as finished; its files lie below scratch.

    The receipt is written last. Safe to call in a child process. Returns the facts.
    """
    entries = {}
    for path in files:
        fsync(path)
        entries[path.relative_to(scratch).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    write_atomic(scratch / f"{name}.receipt.json", page(sealed({"files": entries, "facts": dict(facts)})))
    return dict(facts)


def finished_unit(scratch: Path, name: str) -> dict[str, Any] | None:
    """The facts of a unit that an earlier, killed run finished, if its files still have their bytes; else None."""
    path = scratch / f"{name}.receipt.json"
    if not path.exists():
        return None
    try:
        try:
            receipt = read_sealed(path)
        except OSError as error:  # somebody else found it damaged, or it is no file
            raise DataError(f"{path} cannot be read ({error.strerror}).") from None
        try:
            facts: dict[str, Any] = dict(receipt["facts"])
            for entry, what in receipt["files"].items():
                if size_of(scratch / entry) != what["bytes"] or file_digest(scratch / entry) != what["sha256"]:
                    raise DataError(f"{scratch / entry} is damaged.")
        except (KeyError, TypeError, AttributeError, ValueError):
            raise DataError(f"{path} is damaged: it lacks a field of a receipt.") from None
    except DataError as error:
        say(f"{error} That unit is made again.")
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return facts


@dataclass(frozen=True)
class Workspace:
    """Where a stage builds. The same folder comes back after a kill."""

    folder: Path
    """Every file below it is published, but for the scratch."""
    lock_fd: int
    """The artifact's lock; hand it to child processes (`pass_fds`), so that it lives as long as they do."""

    @property
    def scratch(self) -> Path:
        """Finished units and checkpoints; removed when the artifact is published."""
        return self.folder / SCRATCH


@dataclass(frozen=True)
class Built:
    """What a stage says of what it built; the files speak for themselves."""

    counts: Mapping[str, int]
    facts: Mapping[str, Any]
    measured: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """A local folder of artifacts, and what it shares with other machines."""

    def __init__(
        self,
        root: Path,
        wait: float = 600.0,
        forced: frozenset[str] = frozenset(),
        remote: "Remote | None" = None,
    ) -> None:
        """
        root    created when something is made
        wait    seconds to wait for another run that makes the same artifact
        forced  names of stages that are made again although they are there (`--from`)
        remote  where artifacts are fetched from and pushed to
        """
        self.root = root
        self.wait = wait
        self.forced = forced
        self.remote = remote
        self.fetched: set[str] = set()
        """Keys of the artifacts that came from the remote."""

    def folder(self, identity: Identity) -> Path:
        return self.root / identity.stage / identity.key

    def partial(self, identity: Identity) -> Path:
        """Where an unfinished artifact lies."""
        return self.root / identity.stage / f".{identity.key}.partial"

    def arriving(self, identity: Identity) -> Path:
        """Where one lies that is being fetched; unfinished work stays beside it until it is here."""
        return self.root / identity.stage / f".{identity.key}.fetch"

    def folders(self, stage: str) -> list[Path]:
        """Folders of the stage's artifacts, oldest first."""
        folders = [path for path in (self.root / stage).glob("[!.]*") if path.is_dir()]
        return sorted(folders, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def with_digest(self, stage: str, digest: str) -> Manifest | None:
        """The stage's artifact whose manifest has that digest; None where it is not there (any more), or damaged.

        Raises UnreachableError where only the remote might have it, and does not answer.
        """
        for folder in self.folders(stage) if digest else ():
            with suppress(DataError):
                if (manifest := load(folder)).digest == digest:
                    return manifest
        there = self.remote.of_stage(stage, self.root) if self.remote and digest and stage not in STAYS else ()
        for offer in (one for one in there if one.manifest.digest == digest):
            with _explained(self.root), self._lock(offer.manifest.identity):
                try:
                    return None if self.folder(offer.manifest.identity).exists() else self._take(offer)
                except DataError as error:
                    say(f"{error}")
        return None

    def offer(self, identity: Identity) -> "Offer | None":
        """What the remote has under that identity; None where there is no remote."""
        if self.remote is None or identity.stage in STAYS:
            return None
        return self.remote.offer(identity, self.folder(identity))

    def inspect(self, identity: Identity) -> tuple[Manifest | None, str]:
        """The artifact, and in one line why it is not there when it is not."""
        folder = self.folder(identity)
        if not folder.exists():
            return None, "not made yet"
        try:
            manifest = load(folder)
        except DataError as error:
            return None, str(error)
        if (folder / DAMAGED).exists():
            return None, (folder / DAMAGED).read_text(encoding="utf-8").splitlines()[0]
        if manifest.identity.key != folder.name:
            return None, f"{folder} holds another artifact; delete it."
        return manifest, ""

    def find(self, identity: Identity) -> Manifest | None:
        """The complete artifact, its files checked by size, or None."""
        return self.inspect(identity)[0]

    def make(
        self, identity: Identity, build: Callable[[Workspace], Built], libraries: Sequence[str] = ()
    ) -> tuple[Manifest, bool]:
        """Finds the artifact here or in the remote (second value True), or builds and publishes it under its lock.

        Raises HeldError when another run holds the lock for longer than `wait`, UnreachableError when the remote has it
        and stops answering, DiskFullError, MemoryExhausted, and whatever build raises; the partial folder stays for the
        next run.
        """
        forced = identity.stage in self.forced
        found = None if forced else self.find(identity)
        if found:
            self._sweep(identity)
            self._share(found)
            return found, True
        with _explained(self.root), self._lock(identity) as lock_fd:
            manifest, why = self.inspect(identity)  # once more: another run may have made it while we waited
            if manifest and not forced:
                return manifest, True
            offer, mend = None if forced else self.offer(identity), forced
            if offer:
                try:
                    return self._take(offer), True
                except DataError as error:
                    mend = True
                    say(f"{error} {identity.stage} is made here, and pushed again.")
            if self.folder(identity).exists() and not forced:
                say(f"{identity.stage} is made again: {why}")
            self._prepare(identity, fresh=forced)
            partial = self.partial(identity)
            if not _is_complete(partial):
                started = time.monotonic()
                built = build(Workspace(partial, lock_fd))
                _seal(identity, partial, built, libraries, time.monotonic() - started)
            self._publish(identity, partial)
            return self._share(load(self.folder(identity)), mend, made=True), False

    def _take(self, offer: "Offer") -> Manifest:
        """Fetches an artifact into its place. The caller has its lock. Raises DataError, UnreachableError."""
        assert self.remote
        identity = offer.manifest.identity
        self.remote.pull(offer, self.arriving(identity))
        self._publish(identity, self.arriving(identity))
        self.fetched.add(identity.key)
        return load(self.folder(identity))

    def _share(self, manifest: Manifest, anew: bool = False, made: bool = False) -> Manifest:
        """Pushes an artifact that the remote lacks (anew: or seems to have). Returns the one to go on with.

        made    just now, so nothing depends on it yet: one that another machine pushed first takes its place
        """
        if self.remote is None or manifest.stage in STAYS:
            return manifest
        first = self.remote.push(manifest, anew, made)
        if first and made:
            try:
                return self._take(first)
            except (DataError, UnreachableError) as error:
                say(f"{error} The one made here stays.")
        return manifest

    def _prepare(self, identity: Identity, fresh: bool) -> None:
        """The partial folder, with what a killed run finished (or empty), but none of its litter."""
        partial = self.partial(identity)
        self._sweep(identity)
        begun = partial / SCRATCH / "forced"  # a forced run that was killed goes on as any other
        if fresh and partial.exists() and not begun.exists():
            shutil.rmtree(partial)
        for path in list(partial.rglob("*.tmp")):
            path.unlink()
        if not _is_complete(partial):
            (partial / SCRATCH).mkdir(parents=True, exist_ok=True)
            if fresh:
                begun.touch()

    def _publish(self, identity: Identity, ready: Path) -> None:
        """Puts a sealed folder into its place; what was there, or was not finished, goes."""
        folder = self.folder(identity)
        self._sweep(identity)
        try:
            self._put_away(identity, ready / SCRATCH, folder)
            os.rename(ready, folder)
            for names in (folder.parent, self.root, self.root.parent):  # these may be new, too
                fsync(names)
            self._put_away(identity, self.partial(identity), self.arriving(identity))
        finally:
            self._sweep(identity)

    def _put_away(self, identity: Identity, *paths: Path) -> None:
        for path in paths:
            if path.exists():
                os.rename(path, self.root / identity.stage / f".{identity.key}.old-{path.name.strip('.')}")

    def _sweep(self, identity: Identity) -> None:
        """Removes what a publication left, also one that was killed just after its rename."""
        for _ in range(2):  # for a disk that fails once
            for path in (self.root / identity.stage).glob(f".{identity.key}.old*"):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _lock(self, identity: Identity) -> Iterator[int]:
        """One writer per artifact: flock, never a pid file (stale after kill -9). The file only names the holder."""
        path = self.root / ".locks" / f"{identity.stage}-{identity.key}"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(descriptor, path, identity)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int, path: Path, identity: Identity) -> None:
        deadline, told = time.monotonic() + self.wait, False
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            holder = path.read_text(encoding="utf-8") or "another process"
            if time.monotonic() >= deadline:
                raise HeldError(
                    f"{identity.stage} {identity.key} is being made by {holder} since more than {self.wait:.0f} s; "
                    "wait for it and run again, or give --wait SECONDS."
                )
            if not told:
                say(f"{identity.stage} is being made by {holder}; waiting up to {self.wait:.0f} s")
                told = True
            time.sleep(0.2)


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turns what the system says into errors with a documented exit status."""
    try:
        yield
    except Exception as error:
        if told := of_disk(error, root):
            raise told from error
        if is_out_of_memory(error):
            raise MemoryExhausted("Out of memory; run again with smaller batches or on a larger machine.") from error
        raise


def _is_complete(partial: Path) -> bool:
    """Was the partial folder sealed, and killed only before the rename?"""
    if not (partial / MANIFEST).exists() or (partial / SCRATCH).exists():
        return False
    try:
        return not verify(load(partial))
    except DataError:
        return False


def _seal(identity: Identity, partial: Path, built: Built, libraries: Sequence[str], seconds: float) -> None:
    """Hashes and fsyncs every file; writes the measurements, and the manifest last."""
    files = {}
    for name in sorted(names_in(partial)):
        path = partial / name
        fsync(path)
        files[name] = FileEntry(path.stat().st_size, file_digest(path))
    for folder in {path.parent for path in map(partial.joinpath, files)}:
        fsync(folder)
    measured = sealed({"seconds": round(seconds, 3), **built.measured})
    write_atomic(partial / f"{MEASURED}.json", page(measured))
    body = body_of(identity, files, built.counts, built.facts)
    whole = body | {"key": identity.key, "digest": digest_of(body), "libraries": versions_of(libraries)}
    write_atomic(partial / MANIFEST, page(sealed(whole)))
