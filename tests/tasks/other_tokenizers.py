"""Tokenizers in the layouts of well-known models, trained in a moment. For several test modules."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [str(text) for _, text in sorted(topics.items())][:25]
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def bert() -> Tokenizer:
    """WordPiece, uncased; reserved ids in the vocabulary as BERT has them."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = ["[PAD]", *(f"[unused{n}]" for n in range(9)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    page = json.loads(tokenizer.to_str())
    page["added_tokens"] = [entry for entry in page["added_tokens"] if "unused" not in entry["content"]]
    tokenizer = Tokenizer.from_str(json.dumps(page))
    cls, sep = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=0)
    return tokenizer


def byte_level(
    names: Sequence[AddedToken | str], add_prefix_space: bool = False, size: int = 700, texts: Iterable[str] = TEXTS
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(names), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def roberta() -> Tokenizer:
    names = [*special("<s>", "<pad>", "</s>", "<unk>"), AddedToken("<mask>", lstrip=True, special=True)]
    tokenizer = byte_level(names)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def gpt2() -> Tokenizer:
    tokenizer = byte_level(special("<|endoftext|>"))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def gpt2_with_prefix() -> Tokenizer:
    return byte_level(special("<|endoftext|>"), add_prefix_space=True)


def cl100k() -> Tokenizer:
    """A byte-level BPE whose regex takes a full stop and the line end after it as one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special("<|endoftext|>"), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, "word.\nword.\n" * 200], trainer)
    return tokenizer


def albert() -> Tokenizer:
    """Unigram with ▁ in front of each text and each word; lower-cased."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    names = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=names, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def llama() -> Tokenizer:
    """BPE of characters with bytes for what is rare; no pre-tokenizer, the normalizer puts ▁ in front of each text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    page = json.loads(tokenizer.to_str())
    page["added_tokens"] = page["added_tokens"][:3]
    page["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(page))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


LAYOUTS: dict[str, Callable[[], Tokenizer]] = {
    "bert": bert,
    "roberta": roberta,
    "gpt2": gpt2,
    "gpt2_with_prefix": gpt2_with_prefix,
    "cl100k": cl100k,
    "albert": albert,
    "llama": llama,
}
SETTINGS = {
    "bert": {"mask_token": "[MASK]", "cls_token": "[CLS]", "model_max_length": 512},
    "roberta": {"cls_token": "<s>", "sep_token": "</s>", "pad_token": {"content": "<pad>"}, "mask_token": "<mask>"},
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
}


def saved(folder: Path, layout: str) -> Path:
    """The folder of a tokenizer as `transformers` would save it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(LAYOUTS[layout]().to_str(), encoding="utf-8")
    if layout in SETTINGS:
        (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS[layout]), encoding="utf-8")
    return folder


def with_template(folder: Path, single: str, pair: str) -> None:
    """Gives a saved tokenizer a template that the library would not write: $A and $B are texts, else undefined."""

    def piece(word: str) -> dict[str, object]:
        name, _, kind = word.removeprefix("$").partition(":")
        return {"Sequence" if word.startswith("$") else "SpecialToken": {"id": name, "type_id": int(kind or 0)}}

    path = folder / "tokenizer.json"
    page = json.loads(path.read_text(encoding="utf-8"))
    parts = {"single": [*map(piece, single.split())], "pair": [*map(piece, pair.split())]}
    page["post_processor"] = {"type": "TemplateProcessing", **parts, "special_tokens": {}}
    path.write_text(json.dumps(page), encoding="utf-8")
