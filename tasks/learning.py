"""Learning a vocabulary: byte-level BPE, WordPiece or Unigram, the same for any number of threads and in any run.

BPE (Radford et al. 2019): bytes, not characters, so that every text has an encoding and none has an unknown token.
`tokenizers` counts words in any order but breaks ties by token id, so its merges are a pure function of the texts.

WordPiece (Devlin et al. 2019): its trainer numbers the `##x` of the alphabet in the order of a hash table, and ties go
by those numbers. So the whole alphabet is handed over in order, as special tokens, which come first.

Unigram (Kudo 2018): the trainer of `tokenizers` adds floats up in the order of its threads, and scores differ from run
to run. So the pieces come from `sentencepiece`, whose sums depend on a number of threads that is fixed here, not on the
machine. Spaces stay spaces: SentencePiece's ▁ (U+2581) would make a text that holds that character come back changed.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .special_tokens import SPECIAL_IDS, special_token

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Texts = Callable[[], Iterator[list[str]]]
"""The texts to learn on, in pieces, each time from the beginning."""

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's words; a token never goes beyond one. `ByteLevel` has the same pattern built in."""
_WORD = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
"""The same for counting; differs in numbers that are no digits (², Ⅷ), whose pieces are then just not used."""

LONGEST_WORD = 100
"""Characters; WordPiece takes a longer word as unknown, as BERT does."""
BULK = 1 << 20
"""Characters that are counted at a time."""
THREADS = 4
"""Of sentencepiece. A constant, because its sums are split by thread: not the cores of the machine."""
COVERAGES = (0.9995, 0.995, 0.98, 0.95, 0.9)
"""Share of the characters that get a piece of their own, the first that fits; others are written as bytes."""
ESCAPES = {"\n": "\ue00a", "\t": "\ue009", "\r": "\ue00d", "\v": "\ue00b", "\f": "\ue00c", "\x85": "\ue085"}
"""What would end a line of sentencepiece's input, as characters of private use. Words with those are not learnt on."""
FORBIDDEN = re.compile("[\0\u2581\u2585\u2028\u2029" + "".join(ESCAPES.values()) + "]")
"""What sentencepiece uses for itself."""


@dataclass(frozen=True)
class Manner:
    """How a vocabulary is learnt."""

    model: str
    """bpe, wordpiece or unigram."""
    size: int
    """Tokens: the special ones and what is learnt, without reserved ids."""
    least: int
    lowercase: bool
    split_digits: bool
    prefix_space: bool

    @property
    def keeps_spaces(self) -> bool:
        """Is the space before a word a part of its token?"""
        return self.model != "wordpiece"


def learn(manner: Manner, texts: Texts) -> "Tokenizer":
    """The tokenizer with its special tokens, still without reserved ids and template. Raises UsageError."""
    from tokenizers import AddedToken

    tokenizer = {"bpe": _bpe, "wordpiece": _word_piece, "unigram": _unigram}[manner.model](manner, texts)
    tokenizer.add_special_tokens([AddedToken(**entry) for entry in _specials(manner)])
    return tokenizer


def _specials(manner: Manner) -> list[dict[str, Any]]:
    return [special_token(role, manner.keeps_spaces) for role in SPECIAL_IDS]


def _prepared(manner: Manner, model: Any) -> "Tokenizer":
    """A tokenizer of the model that looks at texts the way the manner says."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    parts: list[Any] = []
    if manner.prefix_space:
        # Not ByteLevel's own: that puts a space also after a special token, and after each digit that is split off.
        parts.append(pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False))
    if manner.split_digits:
        parts.append(pre_tokenizers.Digits(individual_digits=True))
    if manner.model == "wordpiece":
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=manner.lowercase)
        parts.append(pre_tokenizers.BertPreTokenizer())
        tokenizer.decoder = decoders.WordPiece()
    else:
        if manner.lowercase:
            tokenizer.normalizer = normalizers.Lowercase()
        if manner.model == "bpe":
            parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
            tokenizer.decoder = decoders.ByteLevel()
        else:
            parts.append(pre_tokenizers.Split(Regex(WORDS), "isolated"))
            tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    return tokenizer


def _bpe(manner: Manner, texts: Texts) -> "Tokenizer":
    from tokenizers import AddedToken, models, pre_tokenizers, trainers

    tokenizer = _prepared(manner, models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=manner.size,
        min_frequency=manner.least,
        special_tokens=[AddedToken(**entry) for entry in _specials(manner)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


# WordPiece


def _word_piece(manner: Manner, texts: Texts) -> "Tokenizer":
    import json

    from tokenizers import models, trainers

    names = [str(entry["content"]) for entry in _specials(manner)]
    tokenizer = _prepared(manner, models.WordPiece(unk_token="[UNK]"))
    letters = _alphabet(tokenizer, texts, manner.least, (manner.size - len(names)) // 3)
    inside = [f"##{one}" for one in letters if len(tokenizer.pre_tokenizer.pre_tokenize_str("a" + one)) == 1]
    trainer = trainers.WordPieceTrainer(
        vocab_size=manner.size,
        min_frequency=manner.least,
        special_tokens=[*names, *letters, *inside],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    # Fresh: in the one that was trained, the whole alphabet would be special.
    model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    return _prepared(manner, model)


def _alphabet(tokenizer: "Tokenizer", texts: Texts, least: int, most: int) -> list[str]:
    """The characters that occur `least` times or more, the `most` frequent of them, in order of their code points."""
    counts = np.zeros(0x110000, np.int64)
    for some in _in_bulk(texts()):
        codes = np.frombuffer(tokenizer.normalizer.normalize_str(some).encode("utf-32-le"), np.uint32)
        found = np.bincount(codes)
        counts[: len(found)] += found
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts >= least)].tolist()
    kept = [chr(code) for code in order if not chr(code).isspace()]
    return sorted(kept[:most])


def _in_bulk(texts: Iterator[list[str]]) -> Iterator[str]:
    """Texts joined by lines, a million characters or so at a time."""
    waiting: list[str] = []
    held = 0
    for piece in chain.from_iterable(texts):
        waiting.append(piece)
        held += len(piece)
        if held > BULK:
            yield "\n".join(waiting)
            waiting, held = [], 0
    yield "\n".join(waiting)


# Unigram


def _unigram(manner: Manner, texts: Texts) -> "Tokenizer":
    from tokenizers import models

    names = [str(entry["content"]) for entry in _specials(manner)]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    taken = {*names, *fallback}
    learnt = _pieces(manner, _words(manner, texts), manner.size - len(taken))
    known = [(piece, score) for piece, score in learnt if piece not in taken]
    vocabulary = [(name, 0.0) for name in [*names, *fallback]] + known
    return _prepared(manner, models.Unigram(vocabulary, unk_id=SPECIAL_IDS["unk"], byte_fallback=True))


def _words(manner: Manner, texts: Texts) -> list[tuple[str, int]]:
    """The words of the texts and how often they occur, in order of the words."""
    counts: Counter[str] = Counter()
    for some in texts():
        for number, piece in enumerate(some):
            text = piece.lower() if manner.lowercase else piece
            if manner.prefix_space and not number and not text.startswith(" "):
                text = f" {text}"
            counts.update(_WORD.findall(text))
    if manner.split_digits:
        split: Counter[str] = Counter()
        for word, number in counts.items():
            for part in re.findall(r"\d|\D+", word):
                split[part] += number
        counts = split
    return [(word, counts[word]) for word in sorted(counts) if not FORBIDDEN.search(word)]


def _pieces(manner: Manner, words: list[tuple[str, int]], most: int) -> list[tuple[str, float]]:
    """Pieces with their scores, the most probable first. Raises UsageError where the characters do not fit."""
    if not words or not most:
        return []
    back = str.maketrans({"\u2581": " ", **{escape: character for character, escape in ESCAPES.items()}})
    for coverage in COVERAGES:
        try:
            found = _sentencepiece(words, most, coverage)
        except RuntimeError as error:
            if "required_chars" in str(error):
                continue
            if "too high" in str(error) or "too small" in str(error):
                return []
            raise
        return [(piece.translate(back), score) for piece, score in found][:most]
    raise UsageError(
        f"vocabulary.size is {manner.size}, but the characters of this corpus alone take more; use a larger size."
    )


def _sentencepiece(words: list[tuple[str, int]], most: int, coverage: float) -> list[tuple[str, float]]:
    import sentencepiece

    escape = str.maketrans(ESCAPES)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{word.translate(escape)}\t{number}" for word, number in words),
        model_writer=written,
        input_format="tsv",
        model_type="unigram",
        vocab_size=1 + 256 + most,
        hard_vocab_limit=False,  # a small corpus has fewer pieces
        character_coverage=coverage,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_by_unicode_script=False,  # the words are cut already
        split_by_number=False,
        max_sentence_length=1 << 30,  # the default drops long lines without a word
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=THREADS,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return [
        (str(model.id_to_piece(number)), float(model.get_score(number)))
        for number in range(model.get_piece_size())
        if not (model.is_unknown(number) or model.is_byte(number) or model.is_control(number))
    ]


def share_below(keys: NDArray[np.uint64], threshold: int) -> NDArray[np.bool_]:
    """Which 64-bit keys lie below a threshold that may be 2^64 itself."""
    return np.ones(len(keys), np.bool_) if threshold >= 1 << 64 else keys < np.uint64(threshold)
