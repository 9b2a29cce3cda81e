"""A small encoder with random weights, and sets that are learnt at once or not at all. For several test modules."""

import json
import random
from pathlib import Path

import torch

from tasks.artifacts import Store
from tasks.encoder import EncoderConfig, MaskedLanguageModel
from tasks.results import MODEL, UNTRAINED
from tasks.subjects import Ours
from tests.tasks import small_model

NOUNS = ("cat", "dog", "mat", "log")


def subject(folder: Path, length: int = 64, seed: int = 0, blocks: float = 0.05) -> Ours:
    """Of width 32, whose blocks do something from the start: little, and what a token is, is not lost on the way."""
    store = Store(folder)
    vocabulary = small_model.vocabulary(store, small_model.corpus(store))
    size = vocabulary.facts["size"]
    model = MaskedLanguageModel(
        EncoderConfig(vocabulary_size=size, length=length, layers=2, width=32, heads=2, intermediate=48)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                scale = 0.3 if "embedding" in name else blocks
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return Ours(model, vocabulary.path("tokenizer.json"), "small")


def texts(number: int, seed: int = 0) -> list[str]:
    """Sentences, all of them different."""
    generator, found = random.Random(seed), dict[str, None]()
    while len(found) < number:
        words = [generator.choice(("the", "a", "and", "on", "sat")) for _ in range(6)]
        words[generator.randrange(6)] = generator.choice(NOUNS)
        found[" ".join(words)] = None
    return list(found)


def jsonl(path: Path, entries: list[dict]) -> str:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def scored(task, subject: Ours) -> dict:
    """As `battery.run` would hand them to `outcome`: through JSON."""
    untrained = subject.untrained(1)
    found = {label: task.score(one, lambda amount: None) for label, one in ((MODEL, subject), (UNTRAINED, untrained))}
    return json.loads(json.dumps(found))
