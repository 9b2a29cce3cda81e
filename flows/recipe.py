"""What a run is made from: the settings of its stages, for each modality; checked as a whole.

Every key of a recipe is a field of a stage's Config class, so the classes are the only list of settings there is.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast, get_type_hints

from flows import runners
from flows.recipe_words import SOURCES
from tasks import modalities
from tasks.corpus import CorpusConfig
from tasks.errors import UsageError
from tasks.evaluate_config import EvaluateConfig
from tasks.pace import BatchWarmup, Lengths
from tasks.pretrain_config import BesideConfig, PretrainConfig
from tasks.rates import MaskRates
from tasks.registry import RegisterConfig
from tasks.remote_store import check_address
from tasks.shards_config import ShardsConfig
from tasks.vocabulary import VocabularyConfig

STRAND = ("corpus", "vocabulary", "shards", "evaluate")
"""The groups that each modality of a recipe has for itself."""


@dataclass(frozen=True)
class Timeouts:
    """Minutes that a stage may take, waiting for another run that makes the same included; 0 is for ever."""

    corpus: float = 0.0
    vocabulary: float = 0.0
    shards: float = 0.0
    pretrain: float = 0.0
    evaluate: float = 0.0
    register: float = 0.0

    def __post_init__(self) -> None:
        for name, minutes in dataclasses.asdict(self).items():
            if not 0 <= minutes < math.inf:
                raise UsageError(f"timeouts.{name} is {minutes:g}; give minutes, 0 for no limit.")


@dataclass(frozen=True)
class Recipe:
    """What one run is made from. Of another modality than text some groups have other settings (`kind`)."""

    name: str
    """The file's name, unless the file says otherwise."""
    corpus: CorpusConfig
    modality: str = modalities.TEXT
    """What documents are: text, or images."""
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    register: RegisterConfig = field(default_factory=RegisterConfig)
    runner: runners.Name = "processes"
    """Who reads the corpus and makes shards: processes of this machine, or workers of dask or ray; same result."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    """After so long a stage is stopped; what is finished of it is kept."""
    remote: str = ""
    """A folder that machines share, such as s3://bucket/folder: artifacts are fetched from it and pushed to it. Without
    one, that of the machine (MASKMILL_REMOTE), if any."""
    beside: None = None
    """A second modality for the same encoder, with its own corpus, vocabulary, shards and evaluate."""

    def __post_init__(self) -> None:
        if self.remote:
            check_address(self.remote)
        self.pretrain.check(self.shards.length)
        _ = self.shorter  # they are refused now, not after the corpus
        self._check_modality()
        self._check_beside()

    def _check_modality(self) -> None:
        """What only some modalities have is refused for the others now, not after the corpus."""
        mine, seen = modalities.MODALITIES[self.modality], (self.pretrain.input, self.pretrain.target)
        if "payload" in seen and not mine.embedding:
            raise UsageError(
                f"pretrain.input is {seen[0]} and pretrain.target {seen[1]}, and {self.modality} has nothing but "
                "tokens; use tokens for both."
            )
        if self.shards.policy == "block" and not mine.embedding:
            raise UsageError(f"shards.policy is block, and tokens of {self.modality} lie in no grid; use uniform.")
        if self.shards.policy == "whole-word":
            modalities.groups(self.modality)
        if seen[0] == "payload" and self.shards.corruption != "mask":
            raise UsageError(
                f"shards.corruption is {self.shards.corruption}, and with pretrain.input payload a hidden token shows "
                "nothing but [MASK]; use mask."
            )

    def _check_beside(self) -> None:
        size = self.pretrain.beside.batch_tokens
        if bool(self.beside) != bool(size):
            raise UsageError(
                f"pretrain.beside.batch_tokens is {size}, and the recipe has {'a' if self.beside else 'no'} second "
                "modality beside the first; give both, or neither."
            )
        if self.second and self.second.modality == self.modality:
            raise UsageError(f"beside.modality is {self.modality}, as that of the recipe; give another one.")
        if self.second and size < self.second.shards.length:
            raise UsageError(
                f"pretrain.beside.batch_tokens is {size}, and a row beside has {self.second.shards.length} positions; "
                "use as many or more."
            )

    @property
    def second(self) -> "Recipe | None":
        """The second modality as a recipe of its own: trained in as many steps, registered under a name of its own."""
        second: Any = self.beside
        if not second:
            return None
        given = {name: getattr(second, name) for name in ("modality", *STRAND)}
        own = self.pretrain.beside
        # its rows have one length, one number in every step, one mask rate
        plain: dict[str, Any] = {"lengths": Lengths(), "batch_warmup": BatchWarmup(), "mask_rates": MaskRates()}
        plain |= {"input": own.input, "target": own.target, "batch_tokens": own.batch_tokens, "beside": BesideConfig()}
        training = dataclasses.replace(self.pretrain, **plain)
        named = dataclasses.replace(self.register, name=f"{self.register.name}-{second.modality}")
        return Recipe(f"{self.name}-{second.modality}", **given, pretrain=training, register=named, runner=self.runner)

    @property
    def alone(self) -> PretrainConfig:
        """The training of the first modality without the second."""
        return dataclasses.replace(self.pretrain, beside=BesideConfig())

    @property
    def shorter(self) -> tuple[ShardsConfig, ...]:
        """The shards of each of pretrain.lengths: those of the recipe, but for the length."""
        try:
            return tuple(dataclasses.replace(self.shards, length=length) for length in self.pretrain.lengths.lengths)
        except UsageError as error:
            raise UsageError(f"pretrain.lengths.lengths: {error}") from None

    @property
    def settings(self) -> dict[str, Any]:
        """What is to be made. Who makes it, how long it may take and where it travels can change on the way."""
        of_run = ("runner", "timeouts", "remote")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in of_run}

    @property
    def reaches_hub(self) -> bool:
        """Does a source, or the tokenizer, lie on the Hugging Face hub, by name or by URL?"""
        uris = [source.uri for key in SOURCES for source in getattr(self.corpus, key, ())]
        uris.append(getattr(self.vocabulary, "tokenizer", ""))
        return any("hf://" in uri or (uri.startswith("hf:") and not Path(uri[3:]).exists()) for uri in uris)


def _field(group: str, of: type) -> Any:
    """Of a dataclass: a group that need not be given, but for that with the sources."""
    if group == "beside":
        return field(default=None)
    return field() if group == "corpus" else field(default_factory=of)


@cache
def kind(modality: str, second: str = "") -> type[Recipe]:
    """Recipes of a modality: the same groups, some with settings of its own. Raises UsageError for an unknown one.

    second      the modality beside it, if any
    """
    for one in filter(None, (modality, second)):
        if one not in modalities.MODALITIES:
            raise UsageError(f"modality is {one!r}; use {' or '.join(modalities.MODALITIES)}.")
    own = modalities.settings_of(modality)
    if second:
        hints = get_type_hints(kind(second))
        parts = [(name, hints[name], _field(name, hints[name])) for name in STRAND]
        beside = dataclasses.make_dataclass("Beside", [*parts, ("modality", str, field(default=second))], frozen=True)
        own["beside"] = beside
    groups = [(group, of, _field(group, of)) for group, of in own.items()]
    made = dataclasses.make_dataclass(Recipe.__name__, groups, bases=(Recipe,), frozen=True) if own else Recipe
    return cast(type[Recipe], made)
