"""python -m pytest tests/tasks/test_remotes.py"""

import errno
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tasks import remotes
from tasks.archives import open_item
from tasks.errors import DataError, UnreachableError, UsageError
from tasks.reading import documents
from tasks.sources import Source, survey
from tasks.streams import Document, Item, Limits
from tests.tasks.made_files import put

PARAGRAPH = "A paragraph of some length, as there are in files.\n"


def texts(items: tuple[Item, ...]) -> list[str]:
    return [e.text.strip() for item in items for e in documents(item, Limits()) if isinstance(e, Document)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/maskmill", recursive=True)


# memory:// and file://


def test_a_folder_a_glob_and_a_file_behind_a_url(tmp_path: Path, memory: Any) -> None:
    for name in ("b/two.txt", "a.jsonl", "z.txt.gz", "b/.git/x.txt", "c.bin"):
        data = b'{"text": "one"}' if name == "a.jsonl" else name.encode()
        memory.pipe(f"/maskmill/text/{name}", gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    (folder,) = survey([Source("memory://maskmill/text")], tmp_path)
    assert [one.label for one in folder.items] == ["text/a.jsonl", "text/b/two.txt", "text/z.txt.gz"]
    assert folder.kind == "remote" and folder.skipped == {".bin": 1, "(hidden)": 1}
    assert texts(folder.items) == ["one", "b/two.txt", "z.txt.gz"]
    assert folder.items[1].digest == sha256(b"b/two.txt").hexdigest() and folder.items[1].size == 9
    for glob in ("memory://maskmill/text/**/*.txt", "memory://maskmill/text/b*"):
        (matched,) = survey([Source(glob)], tmp_path)
        assert [one.label for one in matched.items] == ["text/b/two.txt"]
    (single,) = survey([Source("memory://maskmill/text/c.bin", name="n", format="text")], tmp_path)
    assert [(one.label, one.path) for one in single.items] == [("n", "memory://maskmill/text/c.bin")]
    with pytest.raises(UsageError, match="holds no"):
        survey([Source("memory://maskmill/text/*.xyz")], tmp_path)
    with pytest.raises(UsageError, match="it is not there"):
        survey([Source("memory://maskmill/nothing")], tmp_path)


def test_a_remote_file_that_changes_is_noticed(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/maskmill/a.txt", b"before")
    (found,) = survey([Source("memory://maskmill/a.txt")], tmp_path)
    assert remotes.identity_of(found.items[0].path) == found.items[0].digest
    memory.pipe("/maskmill/a.txt", b"behind")
    with pytest.raises(DataError, match="changed"):
        texts(found.items)
    memory.rm("/maskmill/a.txt")
    with pytest.raises(DataError, match="it is not there"):
        texts(found.items)
    memory.pipe("/maskmill/a.txt", b"again")


def test_file_urls_are_local_files(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", PARAGRAPH)
    local, url = (survey([Source(uri)], tmp_path)[0] for uri in (str(path), f"file://{path}"))
    assert local.items == url.items and local.digest == url.digest


# S3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    pytest.importorskip("s3fs")
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


def test_a_bucket_is_read_with_the_credentials_of_the_environment(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ENDPOINT_URL", s3), ("ACCESS_KEY_ID", "id"), ("SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.mkdir("books")
    for name in ("en/one.txt", "en/deep/two.txt.gz", "de/drei.jsonl", "en/.hidden", "en/cover.png"):
        data = b'{"text": "drei"}' if name.endswith("jsonl") else name.encode()
        fs.pipe(f"books/{name}", gzip.compress(data) if name.endswith("gz") else data)
    (found,) = survey([Source("s3://books")], tmp_path)
    assert [one.label for one in found.items] == ["books/de/drei.jsonl", "books/en/deep/two.txt.gz", "books/en/one.txt"]
    assert found.skipped == {".png": 1, "(hidden)": 1}
    assert all(one.digest.startswith("etag ") and one.size for one in found.items)
    assert texts(found.items) == ["drei", "en/deep/two.txt.gz", "en/one.txt"]
    assert survey([Source("s3://books")], tmp_path)[0].digest == found.digest
    (one,) = survey([Source("s3://books/en/*.txt")], tmp_path)
    assert [item.label for item in one.items] == ["en/one.txt"]
    fs.pipe("books/en/one.txt", b"en/two.txt")
    with pytest.raises(DataError, match=r"one\.txt changed"):
        texts(found.items)
    assert survey([Source("s3://books")], tmp_path)[0].digest != found.digest
    for uri in ("s3://books/missing", "s3://no-such-bucket/x.txt"):
        with pytest.raises(UsageError, match="it is not there"):
            survey([Source(uri)], tmp_path)


# The web


class _Files(SimpleHTTPRequestHandler):
    """A plain web server: no ETag, no ranges."""

    def log_message(self, *_: object) -> None:
        pass


class _Tagged(BaseHTTPRequestHandler):
    """Says an ETag, and hands out ranges; or breaks off in the middle."""

    data = gzip.compress(PARAGRAPH.encode() * 1000)
    tag = '"one"'
    breaks = False

    def do_HEAD(self) -> None:
        self.answer(b"", len(self.data))

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        first, _, last = asked.partition("-")
        part = self.data[int(first) : int(last) + 1 if last else None]
        self.answer(part[: len(part) // 2] if self.breaks else part, len(part), int(first))

    def answer(self, body: bytes, size: int, first: int = 0) -> None:
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(size))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{first + size - 1}/{len(self.data)}")
        if self.tag:
            self.send_header("ETag", self.tag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serve(handler: Any) -> tuple[ThreadingHTTPServer, str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def tagged() -> Iterator[tuple[Any, str]]:
    handler = type("Handler", (_Tagged,), {})
    server, url = serve(handler)
    yield handler, url
    server.shutdown()


def test_a_page_of_links_is_a_folder_and_no_range_is_needed(tmp_path: Path) -> None:
    long = put(tmp_path / "www" / "books" / "one.txt", f"{PARAGRAPH}\n" * 100_000)
    put(tmp_path / "www" / "books" / "more" / "two.txt.gz", gzip.compress(b"two"))
    put(tmp_path / "www" / "books" / "picture.png", b"x")
    server, url = serve(partial(_Files, directory=str(tmp_path / "www")))
    try:
        (found,) = survey([Source(f"{url}/books/")], tmp_path)
        assert [one.label for one in found.items] == ["books/more/two.txt.gz", "books/one.txt"]
        assert found.skipped == {".png": 1} and all("last-modified" in one.digest for one in found.items)
        came = texts(found.items)
        assert came[0] == "two" and sum(map(len, came)) > 0.98 * long.stat().st_size > remotes.BLOCK
        (single,) = survey([Source(f"{url}/books/one.txt")], tmp_path)
        assert [one.label for one in single.items] == ["one.txt"]
        with open_item(single.items[0]) as file:
            assert not file.seekable() and file.read() == long.read_bytes()
        with pytest.raises(UsageError, match="it is not there"):
            survey([Source(f"{url}/missing.txt")], tmp_path)
    finally:
        server.shutdown()


def test_an_etag_names_the_bytes_and_a_query_stays_secret(tmp_path: Path, tagged: tuple[Any, str]) -> None:
    handler, url = tagged
    (found,) = survey([Source(f"{url}/book.txt.gz?token=secret", name="")], tmp_path)
    (item,) = found.items
    assert (item.label, item.digest, item.size) == ("book.txt.gz", "etag one", len(handler.data))
    assert item.path.endswith("?token=secret") and len(texts(found.items)) > 5
    with open_item(replace(item, kind="parquet")) as file:
        assert file.seekable() and file.seek(-4, 2) and file.read() == handler.data[-4:]
    handler.tag = '"two"'
    with pytest.raises(DataError, match=r"book\.txt\.gz changed") as changed:
        texts(found.items)
    assert "secret" not in str(changed.value)


def test_columns_of_a_server_that_knows_no_ranges_are_no_damaged_file(tmp_path: Path, tagged: tuple[Any, str]) -> None:
    handler, url = tagged
    handler.answer = lambda self, body, size, first=0: (
        self.send_response(200),
        self.send_header("Accept-Ranges", "none"),
        self.end_headers(),
        self.wfile.write(self.data if body else b""),
    )
    (found,) = survey([Source(f"{url}/a.parquet?token=secret")], tmp_path)
    with pytest.raises(DataError, match="download it") as error:
        texts(found.items)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_where_a_server_names_no_version_the_bytes_are_hashed(
    tmp_path: Path,
    tagged: tuple[Any, str],
    tag: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler, url = tagged
    handler.tag = tag
    monkeypatch.setattr(remotes, "NOISY_BYTES", 10)
    (found,) = survey([Source(f"{url}/a.txt?token=secret")], tmp_path)
    assert found.items[0].digest == sha256(handler.data).hexdigest()
    said = capsys.readouterr().err
    assert "a.txt is read to know its bytes" in said and "secret" not in said


def test_a_connection_that_breaks_is_no_damaged_file(tmp_path: Path, tagged: tuple[Any, str]) -> None:
    handler, url = tagged
    (found,) = survey([Source(f"{url}/book.txt.gz?token=secret")], tmp_path)
    handler.breaks = True
    with pytest.raises(UnreachableError, match="cannot be read any more") as error:
        texts(found.items)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


# What is not there


def test_a_server_that_is_away_is_one_sentence_without_secrets(tmp_path: Path) -> None:
    server, url = serve(_Files)
    server.server_close()
    server.shutdown()
    started = time.monotonic()
    with pytest.raises(UnreachableError) as error:
        survey([Source(f"{url}/a.txt?token=secret")], tmp_path)
    assert error.value.exit_code == 69 and "\n" not in str(error.value) and "secret" not in str(error.value)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("gs://bucket/a.txt", r"needs gcsfs; pip install 'maskmill\[gcs\]'"),
        ("abfs://b/a.txt", "needs adlfs; pip"),
        ("what://x", "rotocol"),
    ],
)
def test_a_protocol_that_is_not_installed_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, said: str
) -> None:
    find = fsspec.core.get_filesystem_class

    def without(protocol: str) -> Any:
        if protocol in ("gs", "abfs"):
            raise ImportError(f"Install it to access {protocol}")
        return find(protocol)

    monkeypatch.setattr(fsspec.core, "get_filesystem_class", without)
    with pytest.raises(UsageError, match=said):
        survey([Source(uri)], tmp_path)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("ftp://me:pass@w@host/dir/a.txt", "ftp://host/dir/a.txt"),
        ("404, url='http://host/a?sig=1&b=2'", "404, url='http://host/a'"),
        ("s3://bucket/part-?.txt", "s3://bucket/part-?.txt"),
        ("nothing to see? no", "nothing to see? no"),
        ("https://me@host/a and https://you:b@host/b?c=d.", "https://host/a and https://host/b"),
    ],
)
def test_secrets_are_taken_out_of_urls(text: str, clean: str) -> None:
    assert remotes.without_secrets(text) == clean


def test_a_server_that_does_not_answer_is_not_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UnreachableError, match=r"http://127.0.0.1:9/a.txt cannot be read \(Cannot connect to host"
    ) as caught:
        survey([Source("http://127.0.0.1:9/a.txt")], tmp_path)
    assert "\n" not in str(caught.value)


def of_s3(status: int, code: str) -> Exception:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    answer = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = translate_boto_error(ClientError(answer, "GetObject"))  # type: ignore[arg-type]
    return error


def of_the_web(status: int) -> Exception:
    from aiohttp import ClientResponseError

    return ClientResponseError(None, (), status=status)  # type: ignore[arg-type]


def of_the_hub(status: int) -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    class Response:
        headers: dict[str, str] = {}
        request = None
        status_code = status

    return HfHubHTTPError("m", response=Response())  # type: ignore[arg-type]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def named(module: str, name: str, *arguments: Any, **more: Any) -> Exception:
    error: Exception = getattr(pytest.importorskip(module), name)(*arguments, **more)
    return error


ENDPOINT = {"endpoint_url": "http://h", "error": "refused"}


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (lambda: ConnectionRefusedError(errno.ECONNREFUSED, "refused"), True),
        (lambda: ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (lambda: TimeoutError("took too long"), True),
        (lambda: socket.gaierror(-2, "Name or service not known"), True),
        (lambda: OSError(errno.ENETUNREACH, "Network is unreachable"), True),
        (lambda: caused(FileNotFoundError("http://h/a"), ConnectionRefusedError(errno.ECONNREFUSED, "refused")), True),
        (lambda: named("botocore.exceptions", "EndpointConnectionError", **ENDPOINT), True),
        (lambda: named("botocore.exceptions", "ConnectTimeoutError", **ENDPOINT), True),
        (lambda: named("botocore.exceptions", "ReadTimeoutError", **ENDPOINT), True),
        (lambda: named("botocore.exceptions", "ConnectionClosedError", **ENDPOINT), True),
        (lambda: named("aiohttp", "ServerDisconnectedError"), True),
        (lambda: named("aiohttp", "ClientPayloadError", "not enough data"), True),
        (lambda: named("httpx", "ConnectError", "refused"), True),
        (lambda: named("httpx", "ReadTimeout", "took too long"), True),
        *((lambda status=status: of_the_web(status), True) for status in (408, 429, 500, 502, 503, 504)),
        *((lambda status=status: of_the_hub(status), True) for status in (429, 500, 503)),
        (lambda: of_s3(503, "SlowDown"), True),
        (lambda: of_s3(503, "ServiceUnavailable"), True),
        (lambda: of_s3(500, "InternalError"), True),
        (lambda: of_s3(400, "RequestTimeout"), True),
        *((lambda status=status: of_the_web(status), False) for status in (400, 401, 403, 404, 410, 501)),
        *((lambda status=status: of_the_hub(status), False) for status in (401, 403, 404)),
        (lambda: of_s3(403, "AccessDenied"), False),
        (lambda: of_s3(403, "SignatureDoesNotMatch"), False),
        (lambda: of_s3(404, "NoSuchKey"), False),
        (lambda: of_s3(404, "NoSuchBucket"), False),
        (lambda: of_s3(400, "InvalidArgument"), False),
        (lambda: named("botocore.exceptions", "NoCredentialsError"), False),
        (lambda: caused(named("botocore.exceptions", "NoCredentialsError"), TimeoutError("no metadata")), False),
        (lambda: named("huggingface_hub.errors", "OfflineModeIsEnabled", "by wish"), False),
        (lambda: caused(OSError("tls"), ssl.SSLCertVerificationError("self-signed")), False),
        (lambda: FileNotFoundError("a"), False),
        (lambda: PermissionError("a"), False),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), False),
        (lambda: ValueError("a"), False),
    ],
)
def test_what_waiting_may_mend_is_told_from_what_it_cannot(error: Any, away: bool) -> None:
    assert remotes.is_away(error()) == away
    assert isinstance(remotes.failed(error(), "said", DataError), UnreachableError if away else DataError)
