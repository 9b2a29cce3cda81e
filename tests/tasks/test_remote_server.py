"""Artifacts that machines share, on a real server: large files, wrong credentials, nothing made twice."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Built, Workspace
from tasks.errors import UnreachableError, UsageError
from tasks.remote_store import at
from tests import servers
from tests.tasks.flaky_store import WHAT, build, never, other, sound, store, unlittered


@pytest.fixture(scope="module")
def server() -> Iterator[servers.S3]:
    pytest.importorskip("s3fs")
    with servers.s3(SECRET) as found:
        yield found


@pytest.fixture
def signed(server: servers.S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.S3]:
    """This process has the server's credentials in its environment."""
    from s3fs import S3FileSystem

    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    yield server
    S3FileSystem.clear_instance_cache()


SECRET = "canary77xq0b5e11"


def large(work: Workspace) -> Built:
    block = bytes(range(256)) * 4096
    with open(work.folder / "large.bin", "wb") as file:
        for number in range(120):
            file.write(bytes([number]) + block)
    for number in range(20):
        (work.folder / f"{number}.txt").write_text(f"{number}" * number)
    return Built({}, {})


@pytest.mark.slow
def test_a_file_of_several_parts_and_many_small_ones_travel(
    tmp_path: Path, signed: servers.S3, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{signed.bucket}/several"
    made, _ = store(tmp_path / "a", url).make(WHAT, large)
    fetched, _ = store(tmp_path / "b", url).make(WHAT, never)
    assert sound(fetched, made.digest) and unlittered(tmp_path / "b")
    said = capsys.readouterr().err
    assert "push shards: 126 MB in" in said and "fetch shards: 126 MB in" in said
    forced, _ = store(tmp_path / "a", url, forced=True).make(WHAT, other)
    assert sound(store(tmp_path / "c", url).make(WHAT, never)[0], forced.digest)


@pytest.mark.slow
def test_a_bucket_that_is_not_there_and_wrong_credentials_are_one_sentence(
    tmp_path: Path, signed: servers.S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from s3fs import S3FileSystem

    with pytest.raises(UsageError, match=r"The remote s3://nothing/x cannot be used \(it is not there\)"):
        at("s3://nothing/x")
    assert at(f"{signed.bucket}/not/made/yet")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"x{SECRET}")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(UsageError, match=r"cannot be used \(permission denied\); see to its address") as error:
        at(signed.bucket)
    assert SECRET not in str(error.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")  # may not write
    S3FileSystem.clear_instance_cache()
    made, _ = store(tmp_path / "a", f"{signed.bucket}/reader").make(WHAT, build)
    said = capsys.readouterr().err
    assert sound(made, made.digest) and "not pushed: The remote s3://models/reader cannot be used (permission" in said


@pytest.mark.slow
def test_nobody_at_the_address_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name, value in servers.S3("http://127.0.0.1:9", "me", SECRET).environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=r"The remote s3://models does not answer \(.*127\.0\.0\.1:9") as error:
        at("s3://models")
    s3fs.S3FileSystem.clear_instance_cache()
    assert error.value.exit_code == 69 and SECRET not in str(error.value) and time.monotonic() - started < 60


def maskmill(home: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    environment = servers.calm({"MASKMILL_HOME": str(home), "OMP_NUM_THREADS": "1", **more})
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        cwd=servers.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def last(home: Path) -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = json.loads(maskmill(home, "runs", "--json").stdout)[0]["stages"]
    return stages


@pytest.mark.slow
def test_of_two_machines_the_second_makes_nothing(tmp_path: Path, server: servers.S3, prefect_server: str) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(200):
        words = " ".join(f"word{(number * 7 + at * at) % 31} of the {at % 5} files" for at in range(12))
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{words} and text {number}.")
    a, b, c = (tmp_path / name for name in "abc")
    recipe = ["tiny", "--source", str(tmp_path / "texts")]
    bare = server.environment | {"PREFECT_API_URL": prefect_server}
    shared = bare | {"MASKMILL_REMOTE": f"{server.bucket}/mill"}
    given = ["--set", f"remote={server.bucket}/mill"]

    first = maskmill(a, "run", *recipe, **shared)
    assert first.returncode == 0, first.stderr
    assert [stage["state"] for stage in last(a).values()] == ["made"] * 6

    planned = json.loads(maskmill(b, "plan", *recipe, *given, "--json", **bare).stdout)
    assert [one["action"] for one in planned] == ["fetch"] * 5 + ["run"]
    assert planned[0]["why"].startswith("in the remote s3://models/mill, ")
    second = maskmill(b, "run", *recipe, *given, **bare)
    assert second.returncode == 0, second.stderr
    assert [stage["state"] for stage in last(b).values()] == ["fetched"] * 5 + ["made"]
    assert [stage["digest"] for stage in last(b).values()] == [stage["digest"] for stage in last(a).values()]
    assert "fetched in" in second.stderr and maskmill(b, "verify").returncode == 0
    again = maskmill(b, "run", *recipe, **shared)
    assert again.returncode == 0 and [stage["state"] for stage in last(b).values()] == ["reused"] * 6

    wrong = maskmill(c, "run", *recipe, **shared | {"AWS_SECRET_ACCESS_KEY": f"x{SECRET}"})
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "permission denied" in wrong.stderr
    refused = maskmill(c, "run", *recipe, "--set", f"remote=sftp://me:{SECRET}@host/mill")
    assert refused.returncode == 2 and "has a password or a query in its address" in refused.stderr
    for done in (first, second, again, wrong, refused):
        assert SECRET not in done.stdout + done.stderr
    for home in (a, b, c):
        files = [path for path in home.rglob("*") if path.is_file()]
        assert not [path for path in files if SECRET.encode() in path.read_bytes()]
        assert (home == c) == (len(files) < 20)
    away = maskmill(c, "plan", *recipe, **shared | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert away.returncode == 69 and "does not answer" in away.stderr and away.stderr.count("\n") == 1
