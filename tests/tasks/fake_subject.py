"""A model made of a rule, whose tokens are the words between blanks; it cannot spell what begins with a question mark.
For several test modules."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from tasks.subjects import Encoded, Subject

CLS, SEP, MASK, UNKNOWN = 0, 1, 2, 3
VOCABULARY = 4096


def word_id(word: str) -> int:
    """The same in every process, and different for the words of a test, mostly."""
    return 4 + int.from_bytes(word.encode(), "big") % (VOCABULARY - 4)


class Fake(Subject):
    """rule(ids, place) -> logits (V,) there."""

    def __init__(self, rule: Callable[[np.ndarray, int], np.ndarray], length: int = 64, label: str = "fake") -> None:
        self.rule, self.length, self.label = rule, length, label
        self.vocabulary_size, self.mask_id, self.width, self.parameters = VOCABULARY, MASK, 1, 0
        self.names: dict[int, str] = {CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]", UNKNOWN: "[UNK]"}
        self.asked = 0
        """Sequences so far."""

    def encode(self, texts: Sequence[str], prompts: bool = False) -> list[Encoded]:
        return [self._encode(text.replace("[MASK]", " [MASK] ") if prompts else text, prompts) for text in texts]

    def _encode(self, text: str, prompts: bool) -> Encoded:
        words = text.split()
        ids = [
            MASK if prompts and word == "[MASK]" else UNKNOWN if word.startswith("?") else word_id(word)
            for word in words
        ]
        self.names |= {word_id(word): word for word in words}
        word = np.array([-1, *range(len(words)), -1])
        return Encoded(np.array([CLS, *ids, SEP]), word, np.zeros((len(word), 2), np.int64))

    def decode(self, ids):
        return " ".join(self.names.get(int(one), "…") for one in ids)

    def logits(self, sequences, at):
        self.asked += len(sequences)
        rows = [self.rule(ids, int(place)) for ids, places in zip(sequences, at, strict=True) for place in places]
        return torch.from_numpy(np.array(rows, np.float32).reshape(-1, VOCABULARY))

    def states(self, sequences):
        raise NotImplementedError

    def trainable(self):
        raise NotImplementedError

    def untrained(self, seed):
        raise NotImplementedError


def uniform(ids: np.ndarray, place: int) -> np.ndarray:
    """Knows nothing."""
    return np.zeros(VOCABULARY)


def likes(*words: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """Finds these words more probable than others, the first most, wherever they stand."""
    logits = np.zeros(VOCABULARY)
    for rank, word in enumerate(words):
        logits[word_id(word)] = 8.0 - 0.5 * rank
    return lambda ids, place: logits


def random_rule(seed: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Depends on all that it sees, and on nothing else."""
    table = np.random.default_rng(seed).normal(size=(VOCABULARY, 8))
    return lambda ids, place: table @ np.cos(table[ids] * (np.arange(len(ids)) - place + 0.5)[:, None]).sum(0)
