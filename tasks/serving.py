"""A registered version, ready to be asked: `maskmill predict` and `maskmill serve`.

They ask the served file of this installation (fill_mask.py, fill_image.py) with the version's files, and not the copy
of it that the version carries: no foreign code runs, and what an old version can be asked does not depend on its age.
MLflow's own ways to a model (mlflow.pyfunc, mlflow models serve) run the copy.
"""

import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import modalities, tracking, versions
from .artifacts import digest_of
from .errors import DataError, UsageError, panics_as_errors
from .manifests import json_of
from .streams import first_line
from .versions import Version, home_of

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGESTS = "digests.json"


@dataclass(frozen=True)
class Served:
    """A model in memory, and which one it is."""

    version: Version
    weights: str
    """Digest of weights, config and tokenizer, as in the version's tag."""
    model: Any
    """With `questions` and `answers`."""
    modality: str = modalities.TEXT

    @property
    def front(self) -> Any:
        """What is of its modality."""
        return modalities.module(modalities.MODALITIES[self.modality].front)

    def page(self) -> dict[str, Any]:
        """Which model answers, for programs."""
        version = self.version
        aliases = list(version.aliases)
        return {"model": version.name, "version": version.version, "aliases": aliases, "weights": self.weights}

    def __str__(self) -> str:
        aliases = [f"@{alias}" for alias in self.version.aliases]
        return " ".join([self.version.name, "version", str(self.version.version), *aliases])


def load(spec: str | None = None, home: Path | None = None) -> Served:
    """The model of NAME, NAME@ALIAS or NAME/VERSION; without an alias, the champion; without a name, the only model's.

    Raises UsageError naming what exists, DataError where files are not those that were registered.
    """
    home = home_of(home)
    version = versions.find(spec, home)
    with _folder(version, home) as folder:
        model, weights, modality = opened(folder, f"{version.name} version {version.version}")
    if weights != (tag := version.tags.get("weights", weights)):
        raise DataError(
            f"{version.name} version {version.version} is not the model that was registered: its {DIGESTS} has the "
            f"digest {weights[:12]}…, its tag says {tag[:12]}…; register it again."
        )
    return Served(version, weights, model, modality)


def opened(folder: Path, name: str) -> tuple[Any, str, str]:
    """The model of a registered folder, the digest of its files and its modality. Raises DataError, naming `name`."""
    from mlflow.exceptions import MlflowException

    try:
        modality = modalities.held_by(folder)
        with panics_as_errors():
            model = modalities.module(modalities.MODALITIES[modality].front).served().open(folder)
        return model, digest_of(json_of((folder / DIGESTS).read_bytes())["sha256"]), modality
    except Exception as error:  # files that are none: torch, safetensors and tokenizers raise what they like
        said = error.message if isinstance(error, MlflowException) else f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{name} cannot be loaded: {said}") from error


def ask(
    what: Any,
    spec: str | None = None,
    params: Mapping[str, Any] | None = None,
    home: Path | None = None,
    modality: str = modalities.TEXT,
) -> tuple[Served, Any]:
    """What a registered model says to a text (see fill_mask) or an image (see fill_image), and which model that was.

    Raises UsageError about what it is asked, the parameters, or a model that does not exist or is of another modality.
    """
    front = modalities.module(modalities.MODALITIES[modality].front)
    front.check(what, params or {})
    served = load(spec, home)
    if served.modality != modality:
        raise UsageError(f"{served} is a model of {served.modality}; give it {served.front.WANTED}.")
    from mlflow.exceptions import MlflowException

    try:
        return served, served.model.answers(served.model.questions([what], params))[0]
    except MlflowException as error:
        raise UsageError(front.explained(error.message)) from None


def predict(
    text: str, spec: str | None = None, top: int = 5, home: Path | None = None, targets: str = ""
) -> list[list[dict[str, Any]]]:
    """For each [MASK] of a text the `top` most probable tokens, by a registered model. Raises what `ask` raises."""
    return list(ask(text, spec, {"top_k": top, "targets": targets}, home)[1])


@contextmanager
def _folder(version: Version, home: Path) -> "Iterator[Path]":
    """The version's files for the time of the block; those of the embedded registry where they lie."""
    if tracking.is_embedded(home):
        yield versions.fetch(version, home, None)
        return
    with tempfile.TemporaryDirectory(prefix="maskmill-") as target:
        yield versions.fetch(version, home, Path(target))
