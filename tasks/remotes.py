"""Files behind a URL that fsspec knows: s3://, gs://, hf://, http(s)://, memory:// …

Credentials come from where each implementation of fsspec reads them (AWS_…, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN,
~/.netrc and fsspec's own configuration), never from a recipe. User names, passwords and query strings of a URL appear
in no label and no message. Transient failures are tried again by the implementation, not here; where that was in vain,
they are UnreachableErrors, apart from what no waiting mends: a wrong path, wrong credentials.

What identifies the bytes of a file, without reading them: the ETag (S3, most web servers), a checksum (Google Cloud
Storage), the id of the blob (the hub), and on the web the time of the last modification. Where a server names none of
these, it is the sha256 of the bytes, for which the file is read once more.
"""

import errno
import io
import re
import socket
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, BinaryIO, NamedTuple, cast

from .errors import DataError, MaskmillError, UnreachableError, UsageError
from .progress import say

LOCAL = ("file://", "local://")
WEB = ("http://", "https://")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocol -> the extra of maskmill that installs what it needs."""
BLOCK = 4 << 20
"""Bytes that are asked for at a time."""
PATIENCE = 60
"""Seconds without a byte after which a web server is given up."""
NOISY_BYTES = 64 << 20
"""Reading more than this only for its sha256 is worth a line."""
AWAY = {
    *("ClientConnectionError", "ClientPayloadError"),  # aiohttp
    *("HTTPClientError", "EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError"),  # botocore
    *("NetworkError", "TimeoutException", "RemoteProtocolError", "ProxyError"),  # httpx
    "IncompleteRead",  # http.client and urllib3
}
"""Errors of libraries, by name so that none is imported, that say: the connection, not what was asked."""
OURS = {"OfflineModeIsEnabled", "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
"""Those that look like it, or come after it, and mean this machine's settings."""
NO_WAY = {errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN}
TRANSIENT = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException"}
"""Codes of S3, some of which come with a status of 400."""


class Remote(NamedTuple):
    """One file."""

    url: str
    name: str
    """Its path below what was listed; "" for a single file."""
    identity: str
    size: int


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith(LOCAL)


def local(uri: str) -> str:
    """`file:///a/b` is /a/b."""
    return uri.partition("://")[2] if uri.startswith(LOCAL) else uri


def find(uri: str) -> tuple[list[Remote], Counter[str]]:
    """The files of a URL (a file, a folder or a glob), sorted, each with its identity; and what was passed over.

    Raises UsageError where nothing is there or a package is missing, UnreachableError where nobody answers.
    """
    fs, root = filesystem(uri)
    passed = Counter[str]()
    try:
        infos, top = _listed(fs, root, uri)
    except Exception as error:  # every implementation raises its own
        raise failed(error, f"The source {without_secrets(uri)} cannot be read ({why(error)}).") from None
    if top is None:
        return [Remote(uri, "", *_identified(uri, infos[root]))], passed
    found = []
    for path, info in sorted(infos.items()):
        name = without_secrets(path).removeprefix(without_secrets(top)).strip("/")
        if any(part.startswith(".") for part in name.split("/")):
            passed["(hidden)"] += 1
        elif info["type"] == "file":
            found.append(Remote(_url(uri, fs, root, path), name, _named(info), info.get("size") or 0))
    return found, passed


def _listed(fs: Any, root: str, uri: str) -> tuple[dict[str, Any], str | None]:
    """Path -> what is known of the file; and the folder that the names start at, None for a single file."""
    web = uri.startswith(WEB)
    magic = r"[*\[]" if web else r"[*?\[]"  # on the web a question mark begins a query
    if re.search(magic, root):
        infos = dict(fs.glob(root, detail=True))
        for folder in [path for path, info in infos.items() if info["type"] == "directory"]:
            infos |= fs.find(folder, detail=True)
        return infos, re.split(magic, root)[0].rpartition("/")[0]
    if web and root.partition("?")[0].endswith("/"):  # a page of links
        return fs.find(root, detail=True), root
    info = fs.info(root)
    if info["type"] == "directory":
        return fs.find(root, detail=True), root
    return {root: info}, None


def identified(remote: Remote) -> Remote:
    """The same with what identifies its bytes, which may mean to ask for it or to read them.

    Raises UsageError where that fails, UnreachableError where nobody answers.
    """
    if remote.identity:
        return remote
    try:
        identity, size = _asked(remote.url)
    except Exception as error:
        if isinstance(error, MaskmillError):
            raise
        raise failed(error, f"The source {without_secrets(remote.url)} cannot be read ({why(error)}).") from None
    return remote._replace(identity=identity, size=size or remote.size)


def identity_of(url: str) -> str:
    """What identifies the bytes of a file now. Raises DataError where it cannot be asked, or UnreachableError."""
    with _explained(url):
        return _asked(url)[0]


def open_url(url: str, seeking: bool = False) -> BinaryIO:
    """The bytes of a file. Raises DataError or UnreachableError, also later while it is read.

    seeking     from the web, in pieces that are asked for one by one, which not every server can do
    """
    file = _Reading(url, seeking)
    if seeking and not file.seekable():
        file.close()
        raise DataError(
            f"{without_secrets(url)} cannot be read: its server hands out files from beginning to end only; "
            "download it and give the local file."
        )
    return cast(BinaryIO, io.BufferedReader(file))


def without_secrets(text: str) -> str:
    """A URL, or a sentence with URLs in it, without user names, passwords and queries."""
    return re.sub(r"(\w://)(?:[^/\s]*@)?([^\s?'\"]*)(?:\?[^\s'\"]*=[^\s'\"]*)?", r"\1\2", text)


class _Reading(io.RawIOBase):
    """A file of fsspec. What goes wrong is one of our errors: a lost connection must not look like a damaged file."""

    def __init__(self, url: str, seeking: bool) -> None:
        self.url = url
        with _explained(url):
            fs, path = filesystem(url)
            self.file = fs.open(path, "rb", block_size=0 if url.startswith(WEB) and not seeking else BLOCK)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return getattr(self.file, "size", 0) is not None  # a stream says yes, too

    def readinto(self, buffer: Any) -> int:
        with _explained(self.url):
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())

    def close(self) -> None:
        if not self.closed and hasattr(self, "file"):
            self.file.close()
        super().close()


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except MaskmillError:
        raise
    except Exception as error:
        said = f"{without_secrets(url)} cannot be read any more ({why(error)}); run again."
        raise failed(error, said, DataError) from None


def filesystem(uri: str, what: str = "source", **options: Any) -> tuple[Any, str]:
    """The filesystem of fsspec, and the path in it. Raises UsageError for a protocol that is not known or installed.

    what        the URL is, for messages
    options     for the implementation
    """
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    protocol = uri.partition("://")[0]
    if uri.startswith(WEB):
        from aiohttp import ClientTimeout

        # Its own limit of 5 minutes is one for the whole file, where a server cannot hand out a part of it.
        timeout = ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
        options |= {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    try:
        fs, path = url_to_fs(uri, **options)
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
        extra = f"maskmill[{EXTRAS[protocol]}]" if protocol in EXTRAS else package
        say_what = f"needs {package}; pip install '{extra}'" if package != "fsspec" else f"cannot be read: {error}"
        raise UsageError(f"The {what} {without_secrets(uri)} {say_what}.") from None
    except Exception as error:
        raise failed(error, f"The {what} {without_secrets(uri)} cannot be read ({why(error)}).") from None
    return fs, str(path)


def _url(uri: str, fs: Any, root: str, path: str) -> str:
    """The URL of a file that was found below `uri`, with all that the address of the server had in it."""
    base, chained, behind = uri.partition("::")
    if "://" not in path and base.rstrip("/").endswith(root.rstrip("/")):
        return base.rstrip("/").removesuffix(root.rstrip("/")) + path + chained + behind
    return path if "://" in path else str(fs.unstrip_protocol(path))


def _asked(url: str) -> tuple[str, int]:
    fs, path = filesystem(url)
    fs.invalidate_cache()  # else it is told what it was when it was listed
    return _identified(url, fs.info(path))


def _identified(url: str, info: Mapping[str, Any]) -> tuple[str, int]:
    identity = _named(info)
    if identity:
        return identity, info.get("size") or 0
    if (info.get("size") or 0) > NOISY_BYTES:
        say(f"corpus: {without_secrets(url)} is read to know its bytes: its server names no version of it")
    digest, size = sha256(), 0
    with open_url(url) as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def _named(info: Mapping[str, Any]) -> str:
    """What a server says that identifies the bytes; "" where it says nothing. A weak ETag (W/…) is no such thing."""
    lfs = info.get("lfs") or {}
    known = {**info, "lfs": lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)}
    for key in ("ETag", "etag", "md5Hash", "Content-MD5", "lfs", "blob_id", "version_id", "VersionId", "generation"):
        value = str(known.get(key) or "")
        if value and not value.startswith("W/"):
            return f"{key.lower()} {value.strip(chr(34))}"
    modified = info.get("Last-Modified")
    return f"last-modified {modified} size {info.get('size')}" if modified else ""


# What went wrong.


def failed(error: BaseException, said: str, otherwise: type[MaskmillError] = UsageError) -> MaskmillError:
    """The error to raise with these words: UnreachableError where that is what went wrong, else the other one."""
    return (UnreachableError if is_away(error) else otherwise)(said)


def is_away(error: BaseException) -> bool:
    """Is it a server or a network that does not answer, and may a little later?

    Libraries wrap what they caught, so all that led to an error is looked at; what a server answered counts most.
    """
    causes = list(_causes(error))
    if any(isinstance(one, ssl.SSLCertVerificationError) or _names(one) & OURS for one in causes):
        return False
    for one in causes:
        if isinstance(one, PermissionError):
            return False
        if status := _status(one):
            return status in (408, 429) or (status >= 500 and status != 501)
        if isinstance(one, ConnectionError | TimeoutError | socket.gaierror) or _names(one) & AWAY:
            return True
        if isinstance(one, OSError) and one.errno in NO_WAY:
            return True
    return False


def _status(error: BaseException) -> int:
    """The status of HTTP that a server answered with; 0 where none did."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        found = 503 if response.get("Error", {}).get("Code") in TRANSIENT else found
    else:
        places = ((response, "status_code"), (error, "status"), (error, "code"), (error, "status_code"))
        found = next((getattr(one, name) for one, name in places if hasattr(one, name)), 0)
    return found if isinstance(found, int) and 100 <= found < 600 else 0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def why(error: BaseException) -> str:
    """What an implementation says, in short and without secrets."""
    cause = error.__cause__ or error.__context__
    if isinstance(error, FileNotFoundError) and isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        return why(cause)  # so fsspec says that a web server does not answer
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(error, PermissionError):
        return "permission denied"
    said = (str(error).strip() or type(error).__name__).split("\n", 1)[0][:160]
    return without_secrets(said).rstrip(".")
