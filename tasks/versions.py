"""Versions of registered models: finding them, loading them, asking them. What people call models, in MLflow's words.

A model is called NAME (its champion), NAME@ALIAS or NAME/VERSION.
"""

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import tracking
from .delivery import DENIED, login_refused
from .errors import (
    DataError,
    DiskError,
    DiskFullError,
    MaskmillError,
    UnreachableError,
    UsageError,
    without_secrets,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

DAMAGED = ("malformed", "file is not a database", "unsupported file format")
"""What SQLite says of a database that is not what it was."""
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
"""Aliases: the model to use, the one registered last, the champion before."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
LIBRARIES = ("mlflow", "sqlalchemy", "requests", "boto3", "botocore")
"""Whose errors are those of MLflow's server, its database or the place of its files."""
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")
PATIENCE = 10.0
"""Seconds that a server may take to say that it is well."""
_AWAY = re.compile(
    r" failed with (timeout )?exception |failed with error code (429|5\d\d)|not in a valid JSON format|"
    r"Max retries exceeded|Read timed out|Connection (refused|reset|aborted)|connection .*(closed|failed|refused)"
)
"""What MLflow's client, requests and psycopg say of a server that is away, or behind a gateway that finds none."""
_SHUT, _UNOPENED = "readonly database", "unable to open database file"
_FULL = "database or disk is full"


@dataclass(frozen=True)
class Version:
    """A version of a registered model, as MLflow has it."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    source: str
    """Address of the model's folder."""
    run: str = ""
    """Id of the MLflow run that it belongs to."""

    @property
    def page(self) -> str:
        """Its page, below the address of the MLflow UI (which otherwise opens without a registry)."""
        return f"#/models/{self.name}/versions/{self.version}?workflowType=machine_learning"


def check_name(name: str) -> str:
    """The name itself. Raises UsageError for one that addresses and queries could not carry."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a model; use letters, digits, and _ . - after the first one.")
    return name


def load_model(spec: str | None = None, home: Path | None = None) -> Any:
    """The pyfunc of NAME, NAME@ALIAS or NAME/VERSION; without an alias, the champion; without a name, the only model's.

    Raises UsageError naming what exists, DataError where files are not those that were registered.
    """
    home = home_of(home)
    version = find(spec, home)
    with explained(home), fluent(home) as mlflow:
        try:
            return mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")
        except mlflow.exceptions.MlflowException as error:
            what = f"{version.name} version {version.version} cannot be loaded"
            raise DataError(f"{what}: {error.message.splitlines()[0]}") from error


# Looking things up.


def names(home: Path) -> list[str]:
    """Models in the registry; none where there is no registry yet."""
    if not tracking.exists(home):
        return []
    with explained(home):
        return sorted(model.name for model in tracking.connect(home).search_registered_models())


def find(spec: str | None, home: Path) -> Version:
    """The version that NAME, NAME@ALIAS or NAME/VERSION stands for; without an alias, the champion; without a name, of
    the only model. Raises UsageError naming what exists."""
    name, alias, number = _parse(spec)
    if not tracking.exists(home):
        raise UsageError(f"There is no registry in {home} yet; start with: maskmill run quickstart")
    with explained(home):
        return _find(tracking.connect(home), name, alias, number)


def fetch(version: Version, home: Path, target: Path | None) -> Path:
    """The folder of a version's model in transformers' format, from wherever the registry keeps it.

    target      an empty folder for it; None where MLflow shall say where it lies, if that is on this machine
    Raises DataError where it is gone.
    """
    with explained(home):
        return brought(version, home, target) / "artifacts" / "model"


def brought(version: Version, home: Path, target: Path | None, path: str = "") -> Path:
    """A version's artifacts, or one of them (`path`), from wherever the registry keeps them.

    target      an empty folder, if they have to be brought here; None as in `fetch`
    Raises DataError where they are gone.
    """
    address = "/".join(part for part in (f"models:/{version.name}/{version.version}", path) if part)
    with fluent(home) as mlflow:
        try:
            return Path(
                mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(target) if target else None)
            )
        except (mlflow.exceptions.MlflowException, OSError) as error:
            said = (str(error).splitlines() or [""])[0]
            what = f"{path} of {version.name}" if path else version.name
            raise DataError(f"{what} version {version.version} cannot be loaded: {said}") from error


def known_model(client: "MlflowClient", name: str) -> Any:
    """The registered model, or None."""
    return next(iter(client.search_registered_models(f"name = '{name}'", max_results=1)), None)


def version_of(client: "MlflowClient", found: Any) -> Version:
    """Of what a search found: it leaves the aliases out, so they are asked for."""
    return version_from(client.get_model_version(found.name, found.version))


def version_from(full: Any) -> Version:
    """MLflow's entity as ours."""
    aliases, tags = tuple(sorted(full.aliases)), dict(full.tags)
    return Version(full.name, int(full.version), aliases, tags, str(full.source), str(full.run_id or ""))


def search(client: "MlflowClient", name: str, tag: str, value: str) -> list[Version]:
    """Versions with a tag, oldest first."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{tag}` = '{value}'")
    return [version_of(client, one) for one in sorted(found, key=lambda one: int(one.version))]


def with_weights(client: "MlflowClient", name: str, weights: str) -> Version | None:
    """The version that holds these weights (the digest that register computes), or None."""
    return next(iter(search(client, name, "weights", weights)), None)


def aliased(client: "MlflowClient", name: str, alias: str) -> Version | None:
    """The version that an alias stands for, or None."""
    known = known_model(client, name)
    if known is None or alias not in (aliases := client.get_registered_model(name).aliases):
        return None
    return version_of(client, client.get_model_version(name, aliases[alias]))


def _parse(spec: str | None) -> tuple[str | None, str, int | None]:
    """ "NAME@ALIAS" or "NAME/VERSION" -> name, alias, version."""
    if spec is None:
        return None, CHAMPION, None
    name, slash, number = spec.partition("/")
    name, at, alias = (spec if not slash else name).partition("@")
    check_name(name)
    if slash and (at or not number.isdecimal()):
        raise UsageError(f"{spec!r} names no model; write NAME, NAME@ALIAS or NAME/VERSION, with a number for VERSION.")
    if at and not _ALIAS.fullmatch(alias):
        raise UsageError(f"{alias!r} cannot be an alias; use letters, digits, _ and -.")
    return name, alias or CHAMPION, int(number) if slash else None


def _find(client: "MlflowClient", name: str | None, alias: str, number: int | None) -> Version:
    names = sorted(model.name for model in client.search_registered_models())
    if not names:
        raise UsageError("No model is registered yet; start with: maskmill run quickstart")
    if name is None and len(names) > 1:
        raise UsageError(f"Which model? There are {', '.join(names)}; name one.")
    name = name or names[0]
    if name not in names:
        raise UsageError(f"There is no model {name!r}; there are {', '.join(names)}.")
    found = client.search_model_versions(f"name = '{name}'")
    numbers = sorted(int(one.version) for one in found)
    aliases = client.get_registered_model(name).aliases
    if number is None:
        if alias not in aliases:
            there = ", ".join(f"@{known}" for known in sorted(aliases)) or "no alias"
            raise UsageError(f"{name} has no @{alias}; it has {there} and versions {', '.join(map(str, numbers))}.")
        number = int(aliases[alias])
    if number not in numbers:
        raise UsageError(f"{name} has no version {number}; it has {', '.join(map(str, numbers)) or 'none'}.")
    return version_of(client, client.get_model_version(name, str(number)))


# MLflow's manners.


def check_access(home: Path) -> None:
    """Asks a server or database that is not the embedded one for something small, as the last stage will.

    Raises UsageError where it does not let this user in, MaskmillError where it does not answer as it should.
    """
    if not tracking.is_embedded(home):
        with explained(home):
            reached(home).search_registered_models(max_results=1)


def reached(home: Path) -> "MlflowClient":
    """A client, where the server answers. One that takes connections and never answers is found out in seconds;
    MLflow's client would wait for minutes. Raises UnreachableError, UsageError.
    """
    where = tracking.tracking_uri(home).rstrip("/")
    if where.startswith(("http://", "https://")):
        bare = re.sub(r"://[^/@]*@", "://", where)  # urllib would take user:password for a part of the host's name
        try:
            urllib.request.urlopen(f"{bare}/health", timeout=PATIENCE).close()
        except urllib.error.HTTPError as error:  # it answers; whether as it should is found out by who asks it more
            error.close()
        except TimeoutError:
            raise _away(home, f"does not answer within {PATIENCE:.0f} s") from None
        except OSError as error:  # a certificate, say: MLflow has its own settings for those
            if isinstance(getattr(error, "reason", error), TimeoutError | ConnectionError):
                raise _away(home, "does not answer") from None
        except http.client.HTTPException:
            raise _away(home, "does not speak HTTP") from None
    return tracking.connect(home)


def _away(home: Path, what: str) -> UnreachableError:
    return UnreachableError(
        f"The registry at {without_secrets(tracking.tracking_uri(home))} {what}; start it, or change "
        "MLFLOW_TRACKING_URI, and run again: finished stages are kept."
    )


def home_of(home: Path | None) -> Path:
    """The folder of the registry: MASKMILL_HOME where none is given."""
    if home is None:
        if not os.environ.get("MASKMILL_HOME"):
            raise UsageError("Set MASKMILL_HOME to the folder that holds the registry.")
        home = Path(os.environ["MASKMILL_HOME"])
    return home.absolute()


@contextmanager
def fluent(home: Path) -> Iterator[Any]:
    """mlflow, pointed at this home for the time of the block: log_model and load_model take no client.

    `set_tracking_uri` also writes to the environment, which would then outlive its home.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking.tracking_uri(home))
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None takes it out of the environment


@contextmanager
def explained(home: Path) -> Iterator[None]:
    """What MLflow raises, as one sentence."""
    try:
        yield
    except MaskmillError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DENIED:
            raise UsageError(
                f"The registry's artifacts cannot be written to ({error.filename or tracking.artifact_root(home)}: "
                f"{error.strerror}); change that, and run again: finished stages are kept."
            ) from error
        if not type(error).__module__.startswith(LIBRARIES):
            raise
        raise _said(home, error) from error


def _may_be_written(home: Path) -> bool:
    """May a registry in SQLite, as this user? False of any other."""
    path = Path(tracking.tracking_uri(home).partition("sqlite:///")[2])
    return os.access(path.parent, os.W_OK | os.X_OK) and (not path.exists() or os.access(path, os.R_OK | os.W_OK))


def _said(home: Path, error: Exception) -> MaskmillError:
    """What MLflow, its database or a network says, in our words."""
    lines = str(error).splitlines() or [""]
    # SQLAlchemy puts what it was about before what the database said.
    said = next((line for line in lines if line.startswith(("(sqlite3.", "(psycopg"))), lines[0])
    text = without_secrets(said[:300])
    where = without_secrets(tracking.tracking_uri(home))
    if why := login_refused(error):
        return UsageError(f"MLflow at {where} {why}.")
    if "database is locked" in text:
        return UnreachableError(
            f"Another process keeps the registry at {where} busy; run again later: finished stages are kept."
        )
    # What SQLite cannot open may be its journal: on a full disk, or one that fails.
    if _SHUT in text or (_UNOPENED in text and not _may_be_written(home)):
        return UsageError(f"The registry at {where} may not be written to; change that, and run again.")
    if _UNOPENED in text:
        return DiskError(f"The disk that holds the registry at {where} is full, or fails; look after it and run again.")
    if _FULL in text:
        return DiskFullError(f"No space left for the registry at {where}; free some and run again.")
    if "disk I/O error" in text:
        return DiskError(f"The disk that holds the registry at {where} fails; look after it and run again.")
    if "database schema" in text:
        return UsageError(
            f"The registry at {where} is of another version of MLflow; copy it, run `mlflow db upgrade {where}`, and "
            "run again; or use the version that made it."
        )
    if any(sign in text for sign in DAMAGED):
        return DataError(
            f"The registry at {where} is damaged: {text}; put a copy of it back, or move it away and run again: what "
            "is in the store is registered anew."
        )
    if _AWAY.search(text) or isinstance(error, ConnectionError | TimeoutError):
        # what follows in the text are the innards of urllib3
        return _away(home, "does not answer" if " exception " in text else "does not answer as it should")
    return MaskmillError(f"The registry at {where} does not answer as it should: {text}")
