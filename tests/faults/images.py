"""F1 to F4, F9 and F15 on the stages that are others for images: corpus, vocabulary (a codebook), shards, evaluate."""

from tests.faults import calls, damage, power
from tests.faults.trial import Trial

STAGES = ("corpus", "vocabulary", "shards", "evaluate")
PLACES = [f"{state} {stage}" for state in ("finished", "unfinished") for stage in STAGES]


EVERY = 4
"""Kills aside, each so manieth: they write by the functions of the stages of texts, all of whose calls are tried."""


def trials() -> list[Trial]:
    return [
        *calls.trials("images", STAGES, EVERY),
        *power.trials("images", STAGES, EVERY),
        *damage.trials("images", PLACES),
    ]
