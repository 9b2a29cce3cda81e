"""How fast do artifacts travel? Push and fetch against the least that does the same, on an S3 server on loopback.

    python benchmarks/remote.py [--mb 400] [--runs 3]

Two artifacts: one file of so many MB, and as many in files of 16 MB. The four ways alternate; medians count, and the
ratio is that of a run's own pair. The server shares the cores.

push          Remote.push: sha256 of every file, then the upload, four files at a time
put           fsspec's put of the same files, and sha256 of each
fetch         Remote.pull: the download, four files at a time, sha256 of every file, fsync
get           fsspec's get, and sha256 of each, without fsync
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tasks.artifacts import Built, Identity, Manifest, Store, Workspace, file_digest  # noqa: E402
from tasks.remote_store import Remote  # noqa: E402
from tests import servers  # noqa: E402

PIECE = 16


def made(folder: Path, megabytes: int, pieces: int) -> Manifest:
    def build(work: Workspace) -> Built:
        for number in range(pieces):
            with open(work.folder / f"{number:03}.bin", "wb") as file:
                for _ in range(megabytes // pieces):
                    file.write(os.urandom(1_000_000))
        return Built({}, {})

    return Store(folder).make(Identity("shards", 1, {"pieces": pieces}, {}), build)[0]


def timed(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def plain_put(manifest: Manifest, url: str) -> None:
    import fsspec

    fs, root = fsspec.url_to_fs(url)
    names = sorted(manifest.files)
    for name in names:
        file_digest(manifest.path(name))
    fs.put([str(manifest.path(name)) for name in names], [f"{root}/{name}" for name in names], batch_size=4)


def plain_get(manifest: Manifest, url: str, folder: Path) -> None:
    import fsspec

    fs, root = fsspec.url_to_fs(url)
    names = sorted(manifest.files)
    folder.mkdir()
    fs.get([f"{root}/{name}" for name in names], [str(folder / name) for name in names], batch_size=4)
    for name in names:
        assert file_digest(folder / name) == manifest.files[name].sha256


def pulled(url: str, manifest: Manifest, folder: Path) -> None:
    remote = Remote(url)
    offer = remote.offer(manifest.identity, folder)
    assert offer
    remote.pull(offer, folder)


def measure(url: str, manifest: Manifest, folder: Path, runs: int, title: str) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in ("push", "put", "fetch", "get")}
    for run in range(runs):
        ours, plain = f"{url}/{title}/ours{run}", f"{url}/{title}/plain{run}"
        seconds["push"].append(timed(lambda to=ours: Remote(to).push(manifest)))  # type: ignore[misc]
        seconds["put"].append(timed(lambda to=plain: plain_put(manifest, to)))  # type: ignore[misc]
        for name, there in (("fetch", ours), ("get", plain)):
            target = folder / f"{name}{run}"
            how = pulled if name == "fetch" else plain_get
            arguments = (there, manifest, target) if name == "fetch" else (manifest, there, target)
            seconds[name].append(timed(lambda how=how, given=arguments: how(*given)))  # type: ignore[misc,arg-type]
            shutil.rmtree(target)
    for ours, plain in (("push", "put"), ("fetch", "get")):
        ratios = sorted(one / other for one, other in zip(seconds[ours], seconds[plain], strict=True))
        speeds = ", ".join(f"{name} {manifest.bytes / 1e6 / median(seconds[name]):.0f} MB/s" for name in (ours, plain))
        print(
            f"{title:<12} {speeds}; time {median(ratios):.2f} of it ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=400)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remote-") as place, servers.s3() as server:
        os.environ |= server.environment
        for title, pieces in (("one file", 1), (f"of {PIECE} MB", given.mb // PIECE)):
            folder = Path(place) / title.replace(" ", "-")
            folder.mkdir()
            manifest = made(folder / "store", given.mb, pieces)
            measure(server.bucket, manifest, folder, given.runs, title)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
