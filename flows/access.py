"""Who may reach the servers of `maskmill ui`: this machine, or whoever has the passwords. Imports nothing heavy."""

import base64
import http.client
import importlib.util
import os
import secrets
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts import write_atomic
from tasks.errors import UsageError

HOST = "127.0.0.1"
LOOPBACK = (HOST, "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
PREFECT, MLFLOW = "PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_AUTH_ADMIN_PASSWORD"
"""Variables that switch authentication on: user:password of Prefect, the password of MLflow's first user."""
LEASES = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
USERS = """\
[mlflow]
database_uri = sqlite:///mlflow-users.db
default_permission = READ
admin_username = admin
grant_default_workspace_access = false
# Checking a password costs 0.15 s of a core, at every request; the right ones are remembered for a minute.
auth_cache_ttl_seconds = 60
"""
"""MLflow's settings of who may do what: its own, but for the memory. Its database lies in the home."""
SHORTEST = 12
"""Characters of a password of MLflow, at least; it would say so in a log only."""


@dataclass(frozen=True)
class Access:
    """From where the servers can be reached, and by which names browsers may call them.

    Raises UsageError where others could reach a server that asks for no password.
    """

    host: str = HOST
    names: tuple[str, ...] = ()
    """Beside those of the loopback; the first one stands in the addresses that are shown."""

    def __post_init__(self) -> None:
        missing = [name for name in (PREFECT, MLFLOW) if not os.environ.get(name)]
        if missing and self.host not in LOOPBACK:
            raise UsageError(
                f"On {self.host} others can reach both servers: set {' and '.join(missing)} first, "
                f"or leave out --host, for {HOST}."
            )
        user, _, password = os.environ.get(PREFECT, "").partition(":")
        if user and not password:
            raise UsageError(f"{PREFECT} has to be user:password.")
        if MLFLOW not in missing and len(os.environ[MLFLOW]) < SHORTEST:
            raise UsageError(f"{MLFLOW} has to have {SHORTEST} characters or more.")
        if MLFLOW not in missing and importlib.util.find_spec("flask_wtf") is None:
            raise UsageError("MLflow with a password needs one more package: pip install 'maskmill[server]'")

    @property
    def near(self) -> str:
        """How this machine itself reaches the servers."""
        if self.host in EVERYWHERE:
            return HOST
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def shown(self) -> str:
        """The name in addresses for others."""
        return self.names[0] if self.names else self.near

    @property
    def known(self) -> list[str]:
        """All names by which the servers may be called."""
        return list(dict.fromkeys([*self.names, self.near, HOST, "localhost"]))

    def origins(self, port: int) -> str:
        """What pages of a server may say of where they are from: it directly, or a proxy before it."""
        proxies = [f"{scheme}://{name}" for name in self.names for scheme in ("http", "https")]
        return ",".join([*proxies, *(f"http://{name}:{port}" for name in self.known)])

    def prefect(self, port: int) -> dict[str, str]:
        """Settings of Prefect's server. It has no list of hosts; by default pages of any site may read its answers.

        Who holds which concurrency slot goes to files: in memory, its default, a server that is started again forgets
        it, and a training that was killed meanwhile keeps its slot for ever.
        """
        return {
            LEASES: os.environ.get(LEASES) or "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_UI_API_URL": os.environ.get("PREFECT_UI_API_URL") or f"http://{self.shown}:{port}/api",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.origins(port),
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        }

    def mlflow(self, port: int, home: Path) -> tuple[list[str], dict[str, str]]:
        """Options and settings of MLflow's server; writes the settings of its users into the home."""
        words, settings = ["--host", self.host, "--cors-allowed-origins", self.origins(port)], {}
        if self.names:  # else its default: the loopback and private addresses
            hosts = [f"{name}{at}" for name in self.known for at in ("", ":*")]
            words += ["--allowed-hosts", ",".join(hosts)]
        if os.environ.get(MLFLOW):
            words += ["--app-name", "basic-auth"]
            # It signs the forms of MLflow's own pages. A new one costs whoever has such a form open a reload.
            key = os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32)
            settings["MLFLOW_FLASK_SERVER_SECRET_KEY"] = key
            own = home / "mlflow-users.ini"
            write_atomic(own, USERS.encode())
            settings["MLFLOW_AUTH_CONFIG_PATH"] = os.environ.get("MLFLOW_AUTH_CONFIG_PATH") or str(own)
        return words, settings


def names(host: str, given: str = "") -> tuple[str, ...]:
    """The names of `--allowed-hosts`, else this machine's own; none where only it can reach the servers anyway."""
    if given or host in LOOPBACK:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    own = [] if host in EVERYWHERE else [host]
    return tuple(dict.fromkeys([*own, socket.getfqdn(), socket.gethostname()]))


def refuses(url: str, user: str = "", password: str = "") -> bool:
    """Does a server that is up want another password there, or any at all?"""
    request = urllib.request.Request(url)
    if user:
        word = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {word}")
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as error:
        return error.code == 401
    except (OSError, http.client.HTTPException):
        return False
    return False


def enter_prefect(url: str) -> None:
    """Hands the server's password to Prefect's client where only the server's variable is set.

    Raises UsageError where the server at this address of an API wants another one.
    """
    if os.environ.get(PREFECT):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", os.environ[PREFECT])
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    if not os.environ.get("PREFECT_API_KEY") and refuses(f"{url.rstrip('/')}/admin/version", user, password):
        wrong = "another password" if user else "a password"
        raise UsageError(f"The Prefect server at {url} wants {wrong}; set PREFECT_API_AUTH_STRING to user:password.")


def enter_mlflow(address: str) -> None:
    """Raises UsageError where the server does not know its password: the first one stays, whatever is set later."""
    user, password = os.environ.get("MLFLOW_AUTH_ADMIN_USERNAME") or "admin", os.environ.get(MLFLOW, "")
    if password and refuses(f"{address}/api/2.0/mlflow/users/current", user, password):
        raise UsageError(
            f"MLflow knows {user} by another password than that in {MLFLOW}, which counts at the first start only; "
            "set the old one, and change it on the page of your account."
        )
