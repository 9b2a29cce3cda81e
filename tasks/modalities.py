"""The modalities, and where the parts of each are. A new one is an entry here and the modules that it names.

Each is found by its name: in a recipe (`modality:`), and in the facts of a vocabulary and of what is made with it,
where a manifest without one is of text. Modules are named and not imported, since most runs need those of one modality
only, and some of these are heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import UsageError

TEXT = "text"
TABLE = "words.npy"
"""File of a vocabulary and of shards: which tokens belong together, where some do."""
MODEL, BESIDE = "model", "beside"
"""Folders of a pretrain artifact, and facts of it: the model of its modality, and of a second one."""


@dataclass(frozen=True)
class Modality:
    """The parts of one."""

    corpus: str
    """Module of the stage: its sources become documents. `corpus`, `identity`."""
    vocabulary: str
    """Module of the stage: its documents become tokens. `vocabulary`, `identity`."""
    settings: Mapping[str, str]
    """Stage -> module:class of its settings, where a recipe of this modality has others than text."""
    groups: str
    """Module that reads the table of which tokens belong together: `group_begins`, `break_begins`; "" without one."""
    column: str
    """Of the corpus's Parquet files: what a document is."""
    tokens: str
    """Module that encodes documents for the shards: `settle`, `open_encoder`."""
    agenda: str
    """Module of what an evaluation asks of a model, and how: see agenda.py."""
    files: tuple[str, ...]
    """Of the vocabulary: what a model needs beside its weights; the first is what documents are encoded by."""
    embedding: str = ""
    """Module of the embedding of what the shards carry with each token; "" where they carry nothing."""
    served: str = ""
    """File that a registered model is served by."""
    front: str = ""
    """Module of what a registered model says of itself, and how it is asked: see text_front.py."""


MODALITIES = {
    TEXT: Modality(
        corpus="corpus",
        vocabulary="vocabulary",
        settings={},
        groups="words",
        column="text",
        tokens="text_tokens",
        agenda="agenda",
        files=("tokenizer.json", "tokenizer_config.json"),
        served="fill_mask.py",
        front="text_front",
    ),
    "images": Modality(
        corpus="image_corpus",
        vocabulary="image_vocabulary",
        settings={
            "corpus": "image_corpus:ImageCorpusConfig",
            "vocabulary": "image_vocabulary:ImageVocabularyConfig",
            "shards": "image_settings:ImageShardsConfig",
            "pretrain": "image_settings:ImagePretrainConfig",
            "evaluate": "image_settings:ImageEvaluateConfig",
        },
        groups="",
        column="pixels",
        tokens="image_tokens",
        agenda="image_agenda",
        files=("codebook.npy",),
        embedding="patches",
        served="fill_image.py",
        front="image_front",
    ),
}


def name_of(facts: Mapping[str, Any]) -> str:
    """Of a manifest's facts."""
    return str(facts.get("modality", TEXT))


def of(facts: Mapping[str, Any]) -> Modality:
    """The modality of a manifest, by its facts."""
    return MODALITIES[name_of(facts)]


def groups(name: str) -> Any:
    """What reads a modality's table of which tokens belong together. Raises UsageError where none do."""
    if not MODALITIES[name].groups:
        raise UsageError(f"shards.policy is whole-word, and {name} have no words; use uniform, span or block.")
    return module(MODALITIES[name].groups)


def face(weights: Any, vocabulary: str) -> str:
    """MODEL or BESIDE: which of a pretrain artifact's models reads with a vocabulary, by its digest."""
    return BESIDE if weights.identity.inputs.get("beside_vocabulary") == vocabulary else MODEL


def front(facts: Mapping[str, Any]) -> Any:
    """The module of what a registered model of this modality says of itself."""
    return module(of(facts).front)


def held_by(folder: Path) -> str:
    """The modality of a model, by the files that lie in its folder."""
    there = [name for name, one in MODALITIES.items() if all((folder / file).is_file() for file in one.files)]
    return there[0] if there else TEXT


def beside(config: Any) -> Any:
    """The module in which the class of some settings is: of corpus and vocabulary, that of the stage itself."""
    return module(type(config).__module__.rpartition(".")[2])


def corpus(config: Any, *given: Any, **named: Any) -> Any:
    """The stage corpus of the modality that these settings are of."""
    return beside(config).corpus(config, *given, **named)


def vocabulary(config: Any, *given: Any, **named: Any) -> Any:
    """The stage vocabulary of the modality that these settings are of."""
    return beside(config).vocabulary(config, *given, **named)


def settings_of(name: str) -> dict[str, type]:
    """Stage -> the class of its settings, where a modality's are not those of text."""
    found = {}
    for stage, place in MODALITIES[name].settings.items():
        where, _, kind = place.partition(":")
        found[stage] = getattr(module(where), kind)
    return found


def module(name: str) -> Any:
    """A module of this package."""
    return import_module(f".{name}", __package__)
