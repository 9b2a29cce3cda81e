"""Stage 6, register: weights -> a version in MLflow's registry, and the way back from a name to a model.

The artifact is the folder that is registered: model/ with what its vocabulary needs, card and digests, in stock
transformers form where there is one, and the file that serves it (modalities.Modality.served). It knows nothing of
versions, runs or addresses: those are the registry's. Then, under a lock:

    the same weights are never registered twice: a version with their digest in its tag `weights` is taken as it is
    tags and card are written first, aliases last, so that whoever follows an alias finds a complete version
    `challenger` goes to each new version; `champion` to the first, and to one that passes the gate (gate.py)
"""

import json
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from . import copies, evidence, modalities, promotion, tracking
from .artifacts import Built, Identity, Manifest, Store, Workspace, canonical, digest_of, file_digest, write_atomic
from .board import ROLLED_BACK, STANDS, WON, Board, attach
from .card import card, lineage, origin
from .errors import UsageError
from .gate import Rule
from .progress import say
from .serving import predict
from .versions import (
    CHALLENGER,
    CHAMPION,
    Version,
    aliased,
    check_name,
    explained,
    fluent,
    home_of,
    known_model,
    load_model,
    reached,
    search,
    version_of,
    with_weights,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["RegisterConfig", "Version", "champion", "identity", "load_model", "predict", "register", "registered"]

STAGE = "register"
VERSION = 2
NOT_IDENTITY: set[str] = set()

EXPERIMENT = "maskmill"
"""Experiment of a registration that is part of no run."""
PARENTS = ("corpus", "vocabulary", "shards", "pretrain", "evaluate")
PAYLOAD = "payload.json"
"""What the vocabulary knows of the bytes that go along with its tokens: beside the weights, where there are any."""
PICTURES = "pictures.png"
"""What an evaluation may show of a model; the page of a version shows it, too."""


@dataclass(frozen=True)
class RegisterConfig:
    """Under which name a model is known."""

    name: str = "maskmill"
    """Letters, digits, and _ . - after the first character."""
    tolerance: float = Rule.tolerance
    """Nats per masked token by which a new champion may be worse on a class of tokens: frequent ones, a source's."""
    class_tokens: int = Rule.class_tokens
    """Masked tokens that such a class must have for that to count."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < math.inf:
            raise UsageError(f"register.tolerance is {self.tolerance}; it must be 0 or more nats.")
        if self.class_tokens < 1:
            raise UsageError(f"register.class_tokens is {self.class_tokens}; use at least 1.")
        try:
            check_name(self.name)
        except UsageError as error:
            raise UsageError(f"register.name: {error}") from None


def identity(
    config: RegisterConfig,
    corpus_digest: str,
    vocabulary_digest: str,
    shards_digest: str,
    pretrain_digest: str,
    evaluate_digest: str,
) -> Identity:
    """What the registered folder is a function of."""
    digests = (corpus_digest, vocabulary_digest, shards_digest, pretrain_digest, evaluate_digest)
    return Identity(STAGE, VERSION, asdict(config), dict(zip(PARENTS, digests, strict=True)))


def register(
    config: RegisterConfig,
    corpus: Manifest,
    vocabulary: Manifest,
    shards: Manifest,
    pretrain: Manifest,
    evaluate: Manifest,
    store: Store,
    run: str | None = None,
    home: Path | None = None,
    command: str = "",
    commit: str = "",
) -> tuple[Manifest, bool]:
    """Makes the folder and registers it, each only where that has not been done.

    Args:
        run: the MLflow run that the version belongs to; one of its own where there is none.
        home: the folder of the registry, MASKMILL_HOME where it is None.
        command: makes the model again; for the version's page.
        commit: of the code that made it; for the same.
    Returns:
        The manifest, and whether both the folder and the version were there already. `registered` finds the version.
    Raises:
        MaskmillError: MLflow cannot be reached or refuses. UsageError: a name with odd characters.
    """
    parents = dict(zip(PARENTS, (corpus, vocabulary, shards, pretrain, evaluate), strict=True))
    this = identity(config, *(manifest.digest for manifest in parents.values()))

    def build(workspace: Workspace) -> Built:
        weights = _write_folder(workspace.folder, config.name, parents)
        return Built({"parameters": pretrain.facts["parameters"]}, {"model": config.name, "weights": weights})

    manifest, found = store.make(this, build, libraries=("mlflow", "transformers"))
    home = home_of(home)
    with explained(home), promotion.alone(home):
        client = reached(home)
        known = with_weights(client, config.name, manifest.facts["weights"])
        kept = copies.mend(manifest, evaluate, whole=not found)
        if known and known.tags.get("settled") == manifest.digest:
            if not kept:
                _remember(client, home, known, manifest, evaluate)
            return manifest, found
        tags = _tags(manifest, parents, config, command, commit)
        version = known or _create(client, home, manifest, parents, run, tags)
        _settle(client, home, version, manifest, parents, tags)
    return manifest, False


def registered(manifest: Manifest, home: Path | None = None) -> Version | None:
    """The version that holds the weights of a register manifest; None where there is none (any more)."""
    home = home_of(home)
    if not tracking.exists(home):
        return None
    with explained(home):
        return with_weights(reached(home), manifest.facts["model"], manifest.facts["weights"])


def champion(name: str, store: Store, challenger: str | None = None, home: Path | None = None) -> Manifest | None:
    """The pretrain manifest of the model that a new one has to beat; None where there is none, or where it is gone.

    A challenger (digest of its pretrain manifest) that is registered already is compared with what it was compared with
    then: otherwise a rerun of the champion's own recipe would find another rival, and evaluate what is long evaluated.
    """
    home = home_of(home)
    check_name(name)
    if not tracking.exists(home):
        return None
    with explained(home):
        client = reached(home)
        if challenger:
            for known in search(client, name, "pretrain", challenger):
                return store.with_digest("pretrain", known.tags.get("rival", ""))
        best = aliased(client, name, CHAMPION)
    return store.with_digest("pretrain", best.tags.get("pretrain", "")) if best else None


# The folder.


def _write_folder(folder: Path, name: str, parents: Mapping[str, Manifest]) -> str:
    """model/ and what serves it. Returns the digest of what makes two models the same: weights, config, vocabulary."""
    pretrain, target, of = parents["pretrain"], folder / "model", parents["vocabulary"].facts
    target.mkdir(exist_ok=True)
    digests, face = {}, modalities.face(pretrain, parents["vocabulary"].digest)
    for path, entry in pretrain.files.items():
        if path.startswith(f"{face}/"):
            name_there = path.removeprefix(f"{face}/")
            shutil.copyfile(pretrain.whole(path), target / name_there)
            digests[name_there] = entry.sha256
    if "payload" in of:
        write_atomic(target / PAYLOAD, canonical(of["payload"]) + b"\n")
        digests[PAYLOAD] = file_digest(target / PAYLOAD)
    write_atomic(target / "digests.json", canonical({"sha256": digests}) + b"\n")
    write_atomic(target / "README.md", card(name, parents).encode())
    shutil.copyfile(Path(__file__).with_name(modalities.of(of).served), folder / modalities.of(of).served)
    for beside in modalities.front(of).BESIDE:
        shutil.copyfile(Path(__file__).with_name(beside), target / beside)
    return digest_of(digests)


# The registry.


def _tags(
    manifest: Manifest, parents: Mapping[str, Manifest], config: RegisterConfig, command: str, commit: str
) -> dict[str, str]:
    """What is known of a version before anything is decided: what it was made from, and how good it is."""
    report = parents["evaluate"]
    rate = report.facts["shards_rate"]
    nats = report.facts["metrics"][f"test/rate_{rate}/masked_cross_entropy"]
    tags = {"nats": f"{nats:.6f}", "rate": rate, "test": report.facts["test"]["digest"]}
    tags |= {"rule": json.dumps({"tolerance": config.tolerance, "class_tokens": config.class_tokens})}
    tags |= lineage(parents) | {STAGE: manifest.digest}
    if "modality" in parents["vocabulary"].facts:
        tags |= {"modality": parents["vocabulary"].facts["modality"]}
    tags |= {"rival": report.identity.inputs.get("champion", ""), "command": command or "unknown"}
    return tags | {"commit": commit or "unknown"}


def _create(
    client: "MlflowClient",
    home: Path,
    manifest: Manifest,
    parents: Mapping[str, Manifest],
    run: str | None,
    tags: Mapping[str, str],
) -> Version:
    """Logs the folder as a model and makes a version of it, findable by its weights."""
    from mlflow.exceptions import MlflowException

    name, facts = manifest.facts["model"], parents["vocabulary"].facts
    front = modalities.front(facts)
    if run is None:
        experiment = tracking.experiment_id(client, home, EXPERIMENT)
        run = client.create_run(experiment, run_name=f"register {name}").info.run_id
    say(f"register: logging {name} ({manifest.bytes / 1e6:,.1f} MB) and trying it once")
    # One block for both: creating a version looks the logged model up by the global address, whatever the client's is.
    with fluent(home) as mlflow:
        with mlflow.start_run(run_id=run), _heard():
            logged = mlflow.pyfunc.log_model(
                name=name.replace(".", "-"),  # unlike a registered one, a logged model may have no dot
                python_model=str(manifest.path(modalities.of(facts).served)),
                artifacts={"model": str(manifest.path("model/config.json").parent)},
                input_example=front.example(parents["evaluate"], parents["vocabulary"]),
                pip_requirements=[f"{package}=={installed(package).split('+')[0]}" for package in front.REQUIREMENTS],
                tags={"weights": manifest.facts["weights"]},
            )
            if PICTURES in parents["evaluate"].files:
                mlflow.log_artifact(str(parents["evaluate"].whole(PICTURES)))
        if not known_model(client, name):
            try:
                client.create_registered_model(name, description=front.DESCRIPTION)
            except MlflowException as error:  # another host was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        if kept := _kept(client, home, logged.model_id):
            copies.force(kept)  # a version must not outlive its files in a power cut
        # All at once: a tag of its own costs a version 25 ms.
        source, whole = f"models:/{logged.model_id}", {"weights": manifest.facts["weights"], **tags}
        made = client.create_model_version(name, source, run_id=run, tags=whole, model_id=logged.model_id)
    return version_of(client, made)


@contextmanager
def _heard() -> Iterator[None]:
    """Warnings, less the one that MLflow takes anything for an input, where a served file means that. It sets filters
    of its own, so that none helps."""
    with warnings.catch_warnings(record=True) as found:
        yield
    for one in found:
        if "inferred as AnyType" not in str(one.message):
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)


def _settle(
    client: "MlflowClient",
    home: Path,
    version: Version,
    manifest: Manifest,
    parents: Mapping[str, Manifest],
    known: Mapping[str, str],
) -> None:
    """Evidence, tags, card, then aliases; `settled` at the very end says that nothing is left to do for this report."""
    name, number, report = version.name, str(version.version), parents["evaluate"]
    if evidence.FILE in report.files:
        attach(client, version, report.whole(evidence.FILE))
    board, nats = Board(client, home, name), float(known["nats"])
    if board.champion() == version.version:
        stands, verdict = WON, f"CHAMPION: {nats:.3f} nats"
    elif version.tags.get("gate") == ROLLED_BACK:  # only a person brings it back
        stands, verdict = ROLLED_BACK, version.tags.get("verdict", ROLLED_BACK)
    else:
        stands, verdict = "", f"{STANDS}: {nats:.3f} nats"
    tags = {"verdict": verdict} | ({"gate": stands} if stands else {}) | dict(known)
    for tag, value in tags.items():
        if version.tags.get(tag) != value:
            client.set_model_version_tag(name, number, tag, value)
    shown = _show(client, version, report)
    page = manifest.path("model/README.md").read_text(encoding="utf-8").split("---\n", 2)[-1]
    made_by = origin(*("" if known[tag] == "unknown" else known[tag] for tag in ("command", "commit")))
    client.update_model_version(name, number, description=f"v{number} {verdict}\n{made_by}{shown}{page}")
    if not stands:
        verdict = board.enter(version.version).verdict
    _remember(client, home, version, manifest, report)
    client.set_registered_model_alias(name, CHALLENGER, number)
    client.set_model_version_tag(name, number, "settled", manifest.digest)
    say(f"register: {name} version {number}: {verdict}")


def _remember(client: "MlflowClient", home: Path, version: Version, manifest: Manifest, report: Manifest) -> None:
    """What the registry on this machine keeps of a version is on the disk now, and known."""
    if kept := _kept(client, home, version.source.removeprefix("models:/")):
        copies.remember(manifest, report, kept)


def _kept(client: "MlflowClient", home: Path, model: str) -> Path | None:
    """Where the registry on this machine keeps a logged model; None for another registry, or where it is gone."""
    if not tracking.is_embedded(home) or not model.startswith("m-"):
        return None
    return copies.folder_of(str(client.get_logged_model(model).artifact_location))


def _show(client: "MlflowClient", version: Version, report: Manifest) -> str:
    """Puts the pictures of an evaluation beside the model. Returns them as Markdown for the version's page.

    MLflow shows a picture there that lies on its server, by an address relative to the page's, and no data: URL.
    """
    if PICTURES not in report.files:
        return ""
    client.log_model_artifact(version.source.removeprefix("models:/"), str(report.whole(PICTURES)))
    asked = urlencode({"path": PICTURES, "name": version.name, "version": version.version})
    return f"\n![As they are, hidden, filled in](model-versions/get-artifact?{asked})\n"
