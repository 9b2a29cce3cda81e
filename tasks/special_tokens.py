"""Special and reserved tokens: their names and properties, the template [CLS] A [SEP], what `transformers` reads.

A vocabulary's length is a multiple of 64, so that the head's matrix suits the hardware: reserved ids at the end, which
no text ever gives, fill it up. They are tokens with names, so that the tokenizer's length is V for every library.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .spellings import Spelling

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
"""Ids of the special tokens of a vocabulary that is learnt here; the ordinary tokens follow them."""
MULTIPLE = 64
"""V is a multiple of it."""


def special_token(name: str, keeps_spaces: bool = True) -> dict[str, Any]:
    """The properties of a special token as an AddedToken; `name` is that of its role.

    [MASK] strips the space to its left where the tokenizer keeps spaces: byte-level BPE would leave it as a lone `Ġ`
    before the mask, which training never shows, since there the hidden token carries it.
    """
    return named_token(f"[{name.upper()}]", lstrip=name == "mask" and keeps_spaces)


def named_token(content: str, lstrip: bool = False) -> dict[str, Any]:
    """The properties of a special token of any name."""
    return {
        "content": content,
        "lstrip": lstrip,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }


def set_template(tokenizer: "Tokenizer", special_ids: dict[str, int]) -> None:
    """Encoding a prompt gives [CLS] A [SEP], two of them [CLS] A [SEP] B [SEP]."""
    from tokenizers import processors

    cls, sep = (str(tokenizer.id_to_token(special_ids[name])) for name in ("cls", "sep"))
    # As pairs, not in the short form of one string: a name may hold a colon or a dollar sign.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"],
        special_tokens=[(cls, special_ids["cls"]), (sep, special_ids["sep"])],
    )


def reserve(tokenizer: "Tokenizer", least: int) -> int:
    """Appends reserved tokens, `least` of them or more, until V is a multiple of 64. Returns how many."""
    from tokenizers import AddedToken

    size = tokenizer.get_vocab_size()
    missing = least + -(size + least) % MULTIPLE
    names: list[str] = []
    number = 0
    while len(names) < missing:
        if tokenizer.token_to_id(f"[unused{number}]") is None:
            names.append(f"[unused{number}]")
        number += 1
    tokenizer.add_special_tokens([AddedToken(**named_token(name)) for name in names])
    return missing


def ordinary_ranges(of: list[Spelling]) -> list[list[int]]:
    """Half-open ranges of the ids that a text can have: neither special nor reserved nor [UNK]."""
    ranges: list[list[int]] = []
    for number, spelling in enumerate(of):
        if spelling.role != "text":
            continue
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] = number + 1
        else:
            ranges.append([number, number + 1])
    return ranges


def tokenizer_config(entries: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """tokenizer_config.json for `transformers`: the special tokens by role, with the properties they have.

    entries    role -> its entry in tokenizer.json's added_tokens; those that are learnt here where None
    """
    entries = entries or {role: special_token(role) for role in SPECIAL_IDS}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{
            f"{role}_token": {key: value for key, value in entry.items() if key != "id"} | {"__type": "AddedToken"}
            for role, entry in entries.items()
        },
    }
