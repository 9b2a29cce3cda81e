"""Where maskmill keeps things, and the variables that keep its libraries quiet, offline and local.

Prefect, MLflow and Hugging Face read their settings when they are imported: so `settle` comes first. It never overrides
what the user has set.
"""

import http.client
import importlib.util
import os
import re
import socket
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tasks.errors import UsageError
from tasks.folders import expanded

CHECKOUT = Path(__file__).resolve().parent.parent
PATIENCE = 5.0
"""Seconds to wait for an answer of MLflow's server."""
LONGEST = 480
"""Bytes of the home's path: SQLite opens files of 512."""
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def home() -> Path:
    """The one folder that everything is written to: MASKMILL_HOME, or .maskmill in the checkout.

    Raises UsageError for a path that the address of MLflow's database, which is an URL, or a manifest cannot hold.
    """
    given = expanded(os.environ.get("MASKMILL_HOME") or str(CHECKOUT / ".maskmill"))
    if given.startswith("~"):
        raise UsageError(f"MASKMILL_HOME is {given}; there is no such user, use another path.")
    path = Path(given).absolute()
    if wrong := sorted(set("?#%") & set(str(path))):
        raise UsageError(f"MASKMILL_HOME is {path}; a path with {' and '.join(wrong)} is none for MLflow, use another.")
    try:
        if (size := len(str(path).encode())) > LONGEST:
            raise UsageError(f"MASKMILL_HOME is a path of {size} bytes; databases take {LONGEST}, use a shorter one.")
    except UnicodeEncodeError:
        raise UsageError(
            f"MASKMILL_HOME is {path}, which is not in the encoding of these surroundings "
            f"({sys.getfilesystemencoding()}); set PYTHONUTF8=1, or a locale of UTF-8."
        ) from None
    return path


def store_root(home: Path) -> Path:
    """Where the artifacts lie."""
    return home / "store"


def remote(given: str = "") -> str:
    """The URL of what machines share: that of a recipe, or MASKMILL_REMOTE; "" where there is none."""
    return given or os.environ.get("MASKMILL_REMOTE", "")


def settle(home: Path) -> None:
    """Sets every variable that the user has not set."""
    settings = {
        "MASKMILL_HOME": str(home),
        # MLflow wants the word "true"; "1" is ignored. Prefect takes both.
        "DO_NOT_TRACK": "true",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        # 2 + 4 + 8 seconds of patience with a server that is away, once or twice a stage: enough for it to start again.
        # The default's 62 seconds made five minutes of a run of forty seconds whose server was gone.
        "PREFECT_CLIENT_MAX_RETRIES": "3",
        "PREFECT_API_REQUEST_TIMEOUT": "30",  # seconds, each of these times; the default is 60
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; deployments/automations.yaml waits for four of them
        # Prefect's default serializer is pickle. Nothing of ours is persisted there, and nothing is to be unpickled.
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default blocks for four minutes when a server is away
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # seconds, each of these times; the default is 120
        "GIT_PYTHON_REFRESH": "quiet",
        "HF_DATASETS_CACHE": str(home / "huggingface" / "datasets"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DASK_LOGGING__DISTRIBUTED": "critical",  # workers that stop complain that others do; errors reach us anyway
        "TOKENIZERS_PARALLELISM": "true",
        "GOMP_SPINCOUNT": "1000",  # torch's threads: see pretrain; evaluate is in this process
        "TRANSFORMERS_VERBOSITY": "error",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def check_mlflow() -> None:
    """Raises UsageError where MLFLOW_TRACKING_URI names a server that does not answer: the last stage needs it.

    Any answer of a web server counts, also one that asks for a password (versions.check_access has one); only a gateway
    that finds nothing behind it (5xx) does not. A database has to let us in: MLflow would try for two minutes.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        parts = urlsplit(uri)
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    except ValueError as error:
        raise UsageError(f"MLFLOW_TRACKING_URI is no address: {error}.") from None
    if parts.scheme == "postgresql" and importlib.util.find_spec("psycopg") is None:
        raise UsageError("MLFLOW_TRACKING_URI names a PostgreSQL; it needs: pip install 'maskmill[postgres]'")
    if not parts.hostname or not port:  # SQLite, a folder, Databricks
        return
    try:
        if parts.scheme in ("http", "https"):
            _ask(f"{uri.rstrip('/')}/health")
        else:
            socket.create_connection((parts.hostname, port), PATIENCE).close()
            _enter(uri)
    except (OSError, http.client.HTTPException) as error:
        where = f"{parts.scheme}://{parts.hostname}:{port}{parts.path}"  # no user, no password
        why = getattr(error, "reason", error) if isinstance(error, OSError) else "what answers does not speak HTTP"
        raise UsageError(
            f"No MLflow server answers at {where} (MLFLOW_TRACKING_URI): {why}; start it, or unset the variable."
        ) from None


def _enter(uri: str) -> None:
    """Raises UsageError where a PostgreSQL does not let us in."""
    if not uri.startswith("postgresql") or importlib.util.find_spec("psycopg") is None:
        return
    import psycopg

    try:
        psycopg.connect(re.sub(r"^postgresql\+\w+:", "postgresql:", uri), connect_timeout=int(PATIENCE)).close()
    except psycopg.OperationalError as error:
        why = str(error).splitlines()[0]
        raise UsageError(f"The database that MLFLOW_TRACKING_URI names does not let us in: {why}") from None
    except psycopg.ProgrammingError:  # an option of another driver
        return


def _ask(url: str) -> None:
    bare = re.sub(r"://[^/@]*@", "://", url)  # urllib would take user:password for a part of the host's name
    try:
        urllib.request.urlopen(bare, timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # somebody answers; whom to trust is MLflow's to say
            raise


def reach_hub(allowed: bool) -> None:
    """Only a recipe that names a source on the Hugging Face hub may go there."""
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if allowed else "1")
