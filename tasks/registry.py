"""Stage 6, register: weights -> a version in MLflow's registry, and the way back from a name to a model.

The artifact is the folder that is registered: model/ in stock transformers form with its tokenizer, card and digests,
and fill_mask.py, which serves it. It knows nothing of versions, runs or addresses: those are the registry's. Then,
under a lock:

    the same weights are never registered twice: a version with their digest in its tag `weights` is taken as it is
    tags and card are written first, aliases last, so that whoever follows an alias finds a complete version
    `challenger` goes to each new version; `champion` to the first, and to one that is better on the same test set
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

from . import tracking
from .artifacts import Built, Identity, Manifest, Store, Workspace, canonical, digest_of, load, write_atomic
from .card import card, lineage, origin
from .errors import DataError, UsageError
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
SERVER = "fill_mask.py"
PARENTS = ("corpus", "vocabulary", "shards", "pretrain", "evaluate")
REQUIREMENTS = ("mlflow", "torch", "tokenizers", "safetensors")
"""What fill_mask.py imports; written out, since MLflow's search for it takes 30 s."""


@dataclass(frozen=True)
class RegisterConfig:
    """Under which name a model is known."""

    name: str = "maskmill"
    """Letters, digits, and _ . - after the first character."""

    def __post_init__(self) -> None:
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
    with explained(home), tracking.locked(home, "promotion.lock"):
        client = tracking.connect(home)
        known = with_weights(client, config.name, manifest.facts["weights"])
        if known and known.tags.get("settled") == manifest.digest:
            return manifest, found
        version = known or _create(client, home, manifest, parents, run)
        _settle(client, version, manifest, parents, command, commit)
    return manifest, False


def registered(manifest: Manifest, home: Path | None = None) -> Version | None:
    """The version that holds the weights of a register manifest; None where there is none (any more)."""
    home = home_of(home)
    if not tracking.exists(home):
        return None
    with explained(home):
        return with_weights(tracking.connect(home), manifest.facts["model"], manifest.facts["weights"])


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
        client = tracking.connect(home)
        if challenger:
            for known in search(client, name, "pretrain", challenger):
                return _pretrain(store, known.tags.get("rival", ""))
        best = aliased(client, name, CHAMPION)
    return _pretrain(store, best.tags.get("pretrain", "")) if best else None


# The folder.


def _write_folder(folder: Path, name: str, parents: Mapping[str, Manifest]) -> str:
    """model/ and fill_mask.py. Returns the digest of what makes two models the same: weights, config and tokenizer."""
    pretrain, target = parents["pretrain"], folder / "model"
    target.mkdir(exist_ok=True)
    digests = {}
    for path, entry in pretrain.files.items():
        if path.startswith("model/"):
            shutil.copyfile(pretrain.whole(path), folder / path)
            digests[path.removeprefix("model/")] = entry.sha256
    write_atomic(target / "digests.json", canonical({"sha256": digests}) + b"\n")
    write_atomic(target / "README.md", card(name, parents).encode())
    shutil.copyfile(Path(__file__).with_name(SERVER), folder / SERVER)
    return digest_of(digests)


# The registry.


@dataclass(frozen=True)
class Score:
    """A model's masked cross-entropy, and what it was measured on."""

    nats: float
    rate: str
    test: str
    """Digest of the frozen test set."""


def judge(new: Score, old: Score | None, first: bool) -> tuple[bool, str]:
    """Is the new model the champion, and why: a few words for the registry's table.

    Compared are numbers on the same frozen test set at the same rate. Where they differ the champion stays: two
    numbers of different questions say nothing. `old` is None where the champion says nothing of its score.
    """
    if first:
        return True, f"CHAMPION: first version, {new.nats:.3f} nats"
    if old is None:
        return False, f"not compared: the champion has no score; {new.nats:.3f} nats"
    if (new.test, new.rate) != (old.test, old.rate):
        return False, f"not compared: the champion has another test set; {new.nats:.3f} nats here, {old.nats:.3f} there"
    better = new.nats < old.nats
    return better, f"{'CHAMPION' if better else 'not better'}: {new.nats:.3f} nats, champion before {old.nats:.3f}"


def _create(
    client: "MlflowClient", home: Path, manifest: Manifest, parents: Mapping[str, Manifest], run: str | None
) -> Version:
    """Logs the folder as a model and makes a version of it, findable by its weights."""
    from mlflow.exceptions import MlflowException

    name = manifest.facts["model"]
    if run is None:
        experiment = tracking.experiment_id(client, home, EXPERIMENT)
        run = client.create_run(experiment, run_name=f"register {name}").info.run_id
    say(f"register: logging {name} ({manifest.bytes / 1e6:,.1f} MB) and trying it once")
    # One block for both: creating a version looks the logged model up by the global address, whatever the client's is.
    with fluent(home) as mlflow:
        with mlflow.start_run(run_id=run):
            logged = mlflow.pyfunc.log_model(
                name=name.replace(".", "-"),  # unlike a registered one, a logged model may have no dot
                python_model=str(manifest.path(SERVER)),
                artifacts={"model": str(manifest.path("model/config.json").parent)},
                input_example=([_example(parents["evaluate"])], {"top_k": 5, "targets": "", "output": "fill-mask"}),
                pip_requirements=[f"{package}=={installed(package).split('+')[0]}" for package in REQUIREMENTS],
                tags={"weights": manifest.facts["weights"]},
            )
        if not known_model(client, name):
            try:
                client.create_registered_model(name, description="Fills [MASK] in a text.")
            except MlflowException as error:  # another host was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        source, tags = f"models:/{logged.model_id}", {"weights": manifest.facts["weights"]}
        made = client.create_model_version(name, source, run_id=run, tags=tags, model_id=logged.model_id)
    return version_of(client, made)


def _settle(
    client: "MlflowClient",
    version: Version,
    manifest: Manifest,
    parents: Mapping[str, Manifest],
    command: str,
    commit: str,
) -> None:
    """Tags, card, then aliases; `settled` at the very end says that nothing is left to do for this report."""
    name, number = version.name, str(version.version)
    report = parents["evaluate"].facts
    rate = report["shards_rate"]
    new = Score(report["metrics"][f"test/rate_{rate}/masked_cross_entropy"], rate, report["test"]["digest"])
    best = aliased(client, name, CHAMPION)
    again = best is not None and best.version == version.version
    promoted, verdict = judge(new, _score(best), first=best is None)
    if again:
        promoted, verdict = True, f"CHAMPION: {new.nats:.3f} nats"
    tags = {"verdict": verdict, "nats": f"{new.nats:.6f}", "rate": rate, "test": new.test}
    if best and not again:
        tags |= {"against": f"version {best.version}", "against_nats": best.tags.get("nats", "unknown")}
        tags |= {"against_test": best.tags.get("test", "unknown")}
    tags |= lineage(parents) | {STAGE: manifest.digest}
    tags |= {"rival": parents["evaluate"].identity.inputs.get("champion", ""), "command": command or "unknown"}
    tags |= {"commit": commit or "unknown"}
    for tag, value in tags.items():
        client.set_model_version_tag(name, number, tag, value)
    page = manifest.path("model/README.md").read_text().split("---\n", 2)[-1]
    client.update_model_version(name, number, description=f"v{number} {verdict}\n{origin(command, commit)}{page}")
    if promoted and not again:
        client.set_registered_model_alias(name, CHAMPION, number)
    client.set_registered_model_alias(name, CHALLENGER, number)
    client.set_model_version_tag(name, number, "settled", manifest.digest)
    say(f"register: {name} version {number}: {verdict}")


def _score(version: Version | None) -> Score | None:
    tags = version.tags if version else {}
    try:
        return Score(float(tags["nats"]), tags["rate"], tags["test"])
    except (KeyError, ValueError):
        return None


def _example(evaluate: Manifest) -> str:
    predictions = evaluate.facts["predictions"]
    return str(predictions[0]["text"]) if predictions else "A text with a [MASK]."


def _pretrain(store: Store, digest: str) -> Manifest | None:
    """The pretrain manifest with a digest, if the store still has it whole."""
    for folder in store.folders("pretrain") if digest else []:
        try:
            manifest = load(folder)
        except DataError:
            continue
        if manifest.digest == digest:
            return manifest
    return None
