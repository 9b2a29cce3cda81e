"""A folder behind an fsspec URL that machines share: what one of them has made, the others fetch.

    <remote>/<stage>/<key>/manifest.json            written last: from then on the artifact is there
    <remote>/<stage>/<key>/<digest>/…               its files, below the digest of their manifest
    <remote>/<stage>/<key>/<digest>/measured.json   what is outside the digest, sealed: figures, points of the curve

Files of another digest lie elsewhere, so a manifest that can be read names files which were all there before it, also
where two machines push other bytes under one key, where one is killed, or while --from is replacing an artifact that a
third is fetching. Who comes second takes the first one's. (Two that write manifests of other digests within the same
moment may both go on with their own, under keys of their own from there on; a condition on the write would rule that
out, but not every store of objects has one.) Nothing is ever deleted: that is for whoever owns the bucket.

What arrives is in a hidden folder until every byte was compared with the manifest. Trouble while pushing costs no run:
the artifact is here, and the next run pushes it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple
from uuid import uuid4

from .artifacts import NO_SPACE, Identity, Manifest, fsync, write_atomic
from .errors import DataError, MaskmillError, UnreachableError, UsageError
from .manifests import MANIFEST, MEASURED, file_digest, page, parsed, sealed, size_of, unsealed
from .progress import progress, say
from .remotes import LOCAL, filesystem, is_away, why, without_secrets

AT_ONCE = 4
"""Files that are on their way at a time, where the implementation can do that."""
PART = 16 << 20
"""Bytes of a large file that S3 takes or gives at a time. Its implementation's own way holds up to 500 MB in memory."""
PARTS = 10_000
"""As many may a file have there."""
LOOK = 0.2
"""Seconds between two looks at how far they are."""
KEPT = "; run again: what has arrived is kept"
"""What to do about a fetch that was broken off."""
PAUSE = 60.0
"""Seconds for which a remote that did not answer is not asked again: each try takes as long as it has patience."""


class Offer(NamedTuple):
    """What the remote says that it has."""

    manifest: Manifest
    """Its folder is where the files would lie here."""
    page: bytes
    """The manifest as it was written."""


def at(url: str) -> "Remote | None":
    """The remote at a URL, which answers; None for "".

    Raises UsageError for what is no such URL, or may not be read, UnreachableError where nobody answers.
    """
    if not url:
        return None
    check_address(url)
    remote = Remote(url)
    remote.check()
    return remote


def check_address(url: str) -> None:
    """Raises UsageError for a remote that is no URL, or that has a secret in it."""
    shown, (scheme, _, rest) = without_secrets(url), url.partition("://")
    if not scheme or not rest.strip("/"):
        raise UsageError(f"The remote {shown!r} is no URL; give one as s3://bucket/folder or file:///folder.")
    if ("@" in rest.partition("/")[0] and ":" in rest.partition("@")[0]) or "?" in rest:
        raise UsageError(
            f"The remote {shown} has a password or a query in its address, which would be written down with the "
            "recipe; give it by the environment instead."
        )


class Remote:
    """The shared folder, as one run sees it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.offers: dict[str, Offer] = {}
        """Key -> what was found under it. It stays fetchable, since nothing is deleted."""
        self._away = 0.0
        self._said: set[str] = set()

    def __str__(self) -> str:
        return without_secrets(self.url)

    def check(self) -> None:
        """Raises UnreachableError where nobody answers, UsageError where it may not be read or is not there."""
        fs, root = self._open()
        try:
            fs.invalidate_cache()
            try:
                fs.ls(root, detail=False)
            except FileNotFoundError as error:  # a folder comes with its first file, a bucket does not
                bucket = root.partition("/")[0]
                if is_away(error) or self.url.startswith(LOCAL) or (bucket and not fs.exists(bucket)):
                    raise
        except Exception as error:  # every implementation raises its own
            raise self._trouble(error, "; try again later, or run without it") from None

    def offer(self, identity: Identity, folder: Path) -> Offer | None:
        """What there is of an artifact, but for its files' bytes, which are compared when they arrive.

        None also where what is there is damaged, or where nobody answers (any more), which is said: it is made then.

        folder  where it would lie here
        """
        if identity.key in self.offers or time.monotonic() < self._away:
            return self.offers.get(identity.key)
        try:
            found = self._read(identity.stage, identity.key, folder)
        except DataError as error:
            self._say(f"{error}")
            return None
        except UnreachableError as error:
            self._away = time.monotonic() + PAUSE
            self._say(f"{error} What is not here is made here.")
            return None
        if found:
            self.offers[identity.key] = found
        return found

    def of_stage(self, stage: str, store_root: Path) -> Iterator[Offer]:
        """Every artifact of a stage. Raises UnreachableError, UsageError."""
        fs, root = self._open()
        try:
            fs.invalidate_cache()
            keys = [Path(path).name for path in fs.ls(f"{root}/{stage}", detail=False)]
        except FileNotFoundError as error:
            if is_away(error):
                raise self._trouble(error) from None
            return
        except Exception as error:
            raise self._trouble(error) from None
        with _threads(fs) as (pool, _):
            for found in pool.map(lambda key: self._whole(stage, key, store_root), keys):
                if found:
                    yield found

    def _whole(self, stage: str, key: str, store_root: Path) -> Offer | None:
        if key in self.offers:
            return self.offers[key]
        with suppress(DataError):
            if found := self._read(stage, key, store_root / stage / key):
                self.offers[key] = found
                return found
        return None

    def _read(self, stage: str, key: str, folder: Path) -> Offer | None:
        """Raises DataError for a manifest that is damaged, or another's; UnreachableError, UsageError."""
        data = self._cat(f"{stage}/{key}/{MANIFEST}")
        if data is None:
            return None
        where = f"{self}/{stage}/{key}/{MANIFEST}"
        found = Offer(parsed(data, where, folder), data)
        if (found.manifest.stage, found.manifest.key) != (stage, key):
            raise DataError(f"{where} is the manifest of another artifact; run again to make it anew.")
        return found

    # There and back.

    def push(self, manifest: Manifest, anew: bool = False, made: bool = False) -> Offer | None:
        """Files first, manifest last; nothing where the remote has them. Trouble is said, and is no error.

        anew    also over what is there
        made    just now: of two machines that made it, the one that was first there decides

        Returns what the remote has in its place, where that is of another digest: somebody was first.
        """
        try:
            if time.monotonic() < self._away:
                raise MaskmillError(f"The remote {self} did not answer.")
            first = self._push(manifest, anew)
            if first:
                theirs, ours = first.manifest.digest[:12], manifest.digest[:12]
                end = f"takes the place of {ours}, made here" if made else f"is left there: {ours} is what is used here"
                self._say(f"{manifest.stage:<10}  the {theirs} that another machine pushed {end}")
            return first
        except (MaskmillError, OSError) as error:
            if isinstance(error, UnreachableError):
                self._away = time.monotonic() + PAUSE
            self._say(f"{manifest.stage:<10}  not pushed: {error} The next run pushes it.")
            return None

    def _push(self, manifest: Manifest, anew: bool) -> Offer | None:
        there = None if anew else self._there(manifest)
        if there:
            return there if there.manifest.digest != manifest.digest else None
        data = (manifest.folder / MANIFEST).read_bytes()
        if parsed(data, manifest.folder / MANIFEST, manifest.folder).digest != manifest.digest:
            raise DataError(f"{manifest.folder} was made again meanwhile.")
        fs, root = self._open()
        below = f"{manifest.stage}/{manifest.key}"

        def put(name: str, way: _Way) -> None:
            path = manifest.whole(name)  # damage must not spread
            parts = _parts(fs, manifest.files[name].bytes)
            fs.put_file(str(path), f"{root}/{below}/{manifest.digest}/{name}", callback=way.callback, **parts)

        self._each("push", manifest, put)
        self._pipe(f"{below}/{manifest.digest}/{MEASURED}.json", page(sealed({"files": _measured(manifest.folder)})))
        if not anew and (there := self._there(manifest)) and there.manifest.digest != manifest.digest:
            return there
        self._pipe(f"{below}/{MANIFEST}", data)
        self.offers.pop(manifest.key, None)
        return None

    def _there(self, manifest: Manifest) -> Offer | None:
        """What lies under the key now; a damaged manifest is none, and is written over."""
        with suppress(DataError):
            return self._read(manifest.stage, manifest.key, manifest.folder)
        return None

    def pull(self, offer: Offer, folder: Path) -> None:
        """Fetches an artifact into a hidden folder, which is ready to be published then; what it has already is kept.

        Raises DataError where a file is missing or is not the manifest's, UnreachableError where nobody answers.
        """
        manifest, below = offer.manifest, f"{offer.manifest.stage}/{offer.manifest.key}/{offer.manifest.digest}"
        fs, root = self._open()
        folder.mkdir(parents=True, exist_ok=True)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if path.relative_to(folder).as_posix() not in manifest.files:
                path.unlink()  # of another digest

        def get(name: str, way: _Way) -> None:
            path, entry = folder / name, manifest.files[name]
            if size_of(path) == entry.bytes and file_digest(path) == entry.sha256:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                parts = _parts(fs, entry.bytes)
                fs.get_file(f"{root}/{below}/{name}", str(path), callback=way.callback, **parts)
            except FileNotFoundError as error:
                if is_away(error):
                    raise
                raise DataError(f"{self}/{below}/{name} is missing, and the manifest names it.") from None
            if size_of(path) != entry.bytes or file_digest(path) != entry.sha256:
                path.unlink(missing_ok=True)
                raise DataError(f"{self}/{below}/{name} is damaged: its bytes are not those of the manifest.")
            fsync(path)

        try:
            self._each("fetch", manifest, get)
        except DataError:
            self.offers.pop(manifest.key, None)
            raise
        for one in {path.parent for path in map(folder.joinpath, manifest.files)}:
            fsync(one)
        for name, text in self._figures(below).items():
            write_atomic(folder / name, text.encode(errors="surrogateescape"))
        write_atomic(folder / MANIFEST, offer.page)

    def _figures(self, below: str) -> dict[str, str]:
        """The files beside the manifest: name -> text. Without them an artifact is as good as with them."""
        name = f"{below}/{MEASURED}.json"
        with suppress(DataError):
            if (data := self._cat(name, KEPT)) and isinstance(
                found := unsealed(data, f"{self}/{name}").get("files"), dict
            ):
                return {path: text for path, text in found.items() if _is_figures(path, text)}
        self._say(f"{self}/{name} is missing or damaged: what was measured when it was made is left out.")
        return {}

    def _each(self, what: str, manifest: Manifest, move: Callable[[str, "_Way"], None]) -> None:
        """Does it to every file, some at a time. This thread shows how far that is, and hears Ctrl-C at once."""
        label, total = f"{what} {manifest.stage}", manifest.bytes / 1e6
        with progress(label, total, "MB") as bar, _threads(self._open()[0]) as (pool, over):
            passed = deque[int]()

            def one(name: str) -> None:
                way = _Way(passed, over)
                try:
                    move(name, way)
                except MaskmillError:
                    raise
                except Exception as error:
                    if what == "fetch" and isinstance(error, OSError) and error.errno in NO_SPACE:
                        raise  # this machine's disk
                    raise self._trouble(error, KEPT if what == "fetch" else "") from None
                way.reached(None, manifest.files[name].bytes)  # where the implementation says nothing on the way

            waiting = {pool.submit(one, name) for name in manifest.files}
            while waiting:
                done, waiting = wait(waiting, LOOK, FIRST_EXCEPTION)
                bar.advance(sum(passed.popleft() for _ in range(len(passed))) / 1e6)
                for future in done:
                    future.result()

    # The implementation.

    def _open(self) -> tuple[Any, str]:
        options = {"auto_mkdir": True} if self.url.startswith(LOCAL) else {}
        fs, root = filesystem(self.url, "remote", **options)
        return fs, root.rstrip("/")

    def _cat(self, name: str, then: str = "") -> bytes | None:
        """The bytes of a small file; None where it is not there."""
        fs, root = self._open()
        try:
            return bytes(fs.cat_file(f"{root}/{name}"))
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not is_away(error):
                return None
            raise self._trouble(error, then) from None

    def _pipe(self, name: str, data: bytes) -> None:
        """Writes a small file, which is there whole or not at all."""
        fs, root = self._open()
        try:
            if self.url.startswith(LOCAL):  # two writers of one file would mix; objects are written whole
                aside = Path(root, f"{name}.{uuid4().hex}")
                aside.parent.mkdir(parents=True, exist_ok=True)
                aside.write_bytes(data)
                aside.replace(Path(root, name))
            else:
                fs.pipe_file(f"{root}/{name}", data)
        except Exception as error:
            raise self._trouble(error) from None

    def _trouble(self, error: Exception, then: str = "") -> MaskmillError:
        if is_away(error):
            return UnreachableError(f"The remote {self} does not answer ({why(error)}){then}.")
        return UsageError(f"The remote {self} cannot be used ({why(error)}); see to its address and to credentials.")

    def _say(self, line: str) -> None:
        """Once in a run."""
        if line not in self._said:
            say(line)
        self._said.add(line)


def _measured(folder: Path) -> dict[str, str]:
    """Name -> text of what is outside the digest and means something elsewhere, too."""
    from .places import PLACES

    paths = [path for path in sorted(folder.glob(f"{MEASURED}*")) if path.is_file() and path.name != PLACES]
    return {path.name: path.read_text(errors="surrogateescape") for path in paths}


def _is_figures(name: str, text: Any) -> bool:
    """Is that the name and the text of a file beside a manifest?"""
    try:
        text.encode(errors="surrogateescape")
    except (AttributeError, UnicodeEncodeError):
        return False
    return name.startswith(MEASURED) and name.isascii() and name.isprintable() and "/" not in name and len(name) < 256


@contextmanager
def _threads(fs: Any) -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """And what says that it is over: when one fails or Ctrl-C comes, the others end with their next piece."""
    pool, over = ThreadPoolExecutor(AT_ONCE if fs.async_impl else 1), Event()
    try:
        yield pool, over
    finally:
        over.set()
        pool.shutdown(cancel_futures=True)


class _Way:
    """How far one file is; told by the threads of the implementation."""

    def __init__(self, passed: deque[int], over: Event) -> None:
        self.passed, self.over, self.done = passed, over, 0

    def reached(self, size: int | None, value: int, **_: Any) -> None:
        """So many bytes are there. Raises InterruptedError where that is of no use any more."""
        if self.over.is_set():
            raise InterruptedError("another transfer failed")
        self.passed.append(value - self.done)
        self.done = value

    @property
    def callback(self) -> Any:
        """The same for fsspec."""
        from fsspec.callbacks import Callback

        return Callback(hooks={"reached": self.reached})


def _parts(fs: Any, size: int) -> dict[str, int]:
    """How a large file is cut, for implementations that can be told."""
    return {"chunksize": max(PART, -(-size // PARTS)), "max_concurrency": 2} if "s3" in fs.protocol else {}
