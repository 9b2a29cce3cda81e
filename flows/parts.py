"""The parts of a run: its six stages, the shards once more for each shorter length, the strand of a second modality."""

from dataclasses import dataclass, replace
from typing import Any

from flows.recipe import Recipe
from tasks import corpus, pretrain, shards, vocabulary

INPUTS: dict[str, tuple[str, ...]] = {
    "corpus": (),
    "vocabulary": ("corpus",),
    "shards": ("corpus", "vocabulary"),
    "pretrain": ("vocabulary", "shards"),
    "evaluate": ("corpus", "vocabulary", "shards", "pretrain"),
    "register": ("corpus", "vocabulary", "shards", "pretrain", "evaluate"),
}
"""Stage -> the stages whose manifests it reads, in the order of its arguments."""


BEFORE = (corpus.STAGE, vocabulary.STAGE, shards.STAGE)
"""The stages before training."""


@dataclass(frozen=True)
class Part:
    """One artifact of a run."""

    name: str
    """That of its stage, with the length of its rows where these are shorter ones: "shards 128"."""
    stage: str
    config: Any
    inputs: tuple[str, ...]
    """Names of the parts whose manifests it reads, in the order of its arguments."""
    others: frozenset[int] = frozenset()
    """Rows' lengths of the run's other shards, which no artifact of this part ever had."""
    beside: tuple[str, ...] = ()
    """Of a training on two modalities: the parts with the vocabulary and the shards of the second one."""
    alone: str = ""
    """Of an evaluation of such a one: the part that was trained on this modality alone, if any."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of all parts that it reads."""
        return (*self.inputs, *self.beside, *filter(None, [self.alone]))


def parts(recipe: Recipe) -> dict[str, Part]:
    """The parts of a run by their names, in order; of a mixed one, those of the second modality by its name, too."""
    if not recipe.second:
        return _parts(recipe)
    return _mixed(recipe, recipe.second)


def _mixed(recipe: Recipe, other: Recipe) -> dict[str, Part]:
    name = other.modality
    first, second = _parts(recipe), {f"{one} {name}": _of(part, name) for one, part in _parts(other).items()}
    data = [part for some in (first, second) for part in some.values() if part.stage in BEFORE]
    found = {part.name: part for part in data}
    alone = {}
    if recipe.pretrain.beside.alone:
        alone = {one: f"pretrain {one} alone" for one in (recipe.modality, name)}
        found[alone[recipe.modality]] = replace(first["pretrain"], name=alone[recipe.modality], config=recipe.alone)
        found[alone[name]] = replace(second[f"pretrain {name}"], name=alone[name])
    found["pretrain"] = replace(first["pretrain"], beside=(f"vocabulary {name}", f"shards {name}"))
    for modality, evaluation, registration in (
        (recipe.modality, first["evaluate"], first["register"]),
        (name, second[f"evaluate {name}"], second[f"register {name}"]),
    ):
        found[evaluation.name] = replace(evaluation, alone=alone.get(modality, ""))
        found[registration.name] = registration
    return found


def _of(part: Part, name: str) -> Part:
    """A part of the second modality, whose weights are those of both."""
    inputs = tuple(one if one == pretrain.STAGE else f"{one} {name}" for one in part.inputs)
    return replace(part, name=f"{part.name} {name}", inputs=inputs)


def _parts(recipe: Recipe) -> dict[str, Part]:
    shorter = {f"shards {config.length}": config for config in recipe.shorter}
    lengths = frozenset({recipe.shards.length, *(config.length for config in shorter.values())})
    found: dict[str, Part] = {}
    for stage, inputs in INPUTS.items():
        configs = {stage: getattr(recipe, stage)} | (shorter if stage == shards.STAGE else {})
        inputs += tuple(shorter) if stage == pretrain.STAGE else ()
        for name, config in configs.items():
            others = lengths - {config.length} if stage == shards.STAGE else frozenset()
            found[name] = Part(name, stage, config, inputs, others)
    return found
