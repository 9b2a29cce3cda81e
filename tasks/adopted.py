"""An existing tokenizer as the vocabulary: a tokenizer.json, a folder with one, or one of the Hugging Face hub.

It encodes raw text as it did before. What is changed, all in its JSON: truncation and padding are off; the five special
tokens are there (what is missing is added at the end); [MASK] takes the space before it along where the tokenizer keeps
spaces; a prompt becomes [CLS] A [SEP]. Normalizers stay.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifacts import digest_of, file_digest
from .errors import DataError, UsageError, panics_as_errors
from .folders import expanded
from .hub import words
from .manifests import json_of
from .progress import say
from .remotes import failed
from .special_tokens import SPECIAL_IDS, named_token, set_template
from .spellings import byte_alphabet, components, has_metaspace, is_byte_level
from .streams import first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that say which token is which; the first that does is believed."""
WELL_KNOWN = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
}
"""Names of special tokens in BERT, RoBERTa, XLM-R, ALBERT, XLNet and their kin."""
UNKNOWN = "\U0010fffd \ua66e a\U00013080b \u0e4f"
"""Characters that hardly any vocabulary has, alone and in words; not all of them are dropped by a normalizer."""
DROPS_SPACES = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit"}


@dataclass(frozen=True)
class Found:
    """Where an existing tokenizer lies."""

    name: str
    """For people: the file's or folder's own name, or hf:NAME@REVISION; never a path."""
    files: Mapping[str, Path]
    """tokenizer.json, and what there is of SETTINGS."""
    digest: str
    """Of the bytes of all files."""


@dataclass(frozen=True)
class Adopted:
    """An existing tokenizer with all that a vocabulary needs, but for reserved ids."""

    tokenizer: "Tokenizer"
    special_ids: dict[str, int]
    added: list[str]
    """Names of the special tokens that it lacked."""

    def lossless(self, unicode: str) -> bool:
        """Do the bytes of a text's tokens add up to the text's? `unicode` is the normal form that texts are in."""
        whole = json.loads(self.tokenizer.to_str())
        parts = components({"normalizer": whole["normalizer"], "pre_tokenizer": whole["pre_tokenizer"]})
        changes = [part for part in components({"normalizer": whole["normalizer"]}) if part["type"] != "Sequence"]
        harmless = all(part["type"] == "NFC" and unicode in ("NFC", "NFKC") for part in changes)
        odd = any(
            part.get("add_prefix_space") or part.get("behavior") == "Removed" or part["type"] in DROPS_SPACES
            for part in parts
        )
        odd = odd or any(not entry["special"] for entry in whole["added_tokens"])
        every_byte = all(self.tokenizer.token_to_id(character) is not None for character in byte_alphabet())
        return is_byte_level(whole) and whole["model"]["type"] == "BPE" and every_byte and harmless and not odd


def find(address: str) -> Found:
    """The files of a tokenizer. Raises UsageError where there is none, UnreachableError where the hub is away."""
    path = Path(expanded(address.removeprefix("hf:")))
    if address.startswith("hf:") and not path.exists():
        return _of_hub(address)
    if path.is_dir():
        files = {name: path / name for name in (TOKENIZER, *SETTINGS) if (path / name).is_file()}
    else:
        files = {TOKENIZER: path} if path.is_file() else {}
    if TOKENIZER not in files:
        raise UsageError(
            f"vocabulary.tokenizer: {address} is no tokenizer.json and no folder with one; give such a file, a folder, "
            "or hf:NAME."
        )
    if not _is_tokenizer(files[TOKENIZER]):
        raise UsageError(
            f"vocabulary.tokenizer: {address} is not the tokenizer.json of a fast tokenizer; save one with "
            "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER)` of transformers."
        )
    return Found(path.absolute().name, files, _digest(files))


def _is_tokenizer(path: Path) -> bool:
    try:
        page = json_of(path.read_bytes())
    except ValueError:
        return False
    return isinstance(page, dict) and isinstance(page.get("model"), dict)


def _digest(files: Mapping[str, Path]) -> str:
    return digest_of({name: file_digest(path) for name, path in files.items()})


def _of_hub(address: str) -> Found:
    """The files at the revision that the name has now; where the hub cannot be asked, at the one that is cached."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, asked = address.removeprefix("hf:").partition("@")
    trouble: Exception | None = None
    revision = asked or None
    try:
        revision = str(HfApi().model_info(name, revision=revision, timeout=20).sha)
    except Exception as error:  # the hub's client raises its own, httpx's and urllib's errors
        trouble = error
    files: dict[str, Path] = {}
    try:
        for file in (TOKENIZER, *SETTINGS):
            try:
                files[file] = Path(hf_hub_download(name, file, revision=revision, local_files_only=trouble is not None))
            except EntryNotFoundError as error:
                lost = isinstance(error, LocalEntryNotFoundError) and not trouble  # between two files
                if file == TOKENIZER or lost:
                    raise
            revision = files[TOKENIZER].parent.name  # …/snapshots/<commit>/tokenizer.json
    except Exception as error:
        first = trouble or error
        said = f"is no folder here, and the hub gives no {TOKENIZER} of it ({words(first)})."
        raise failed(first, f"vocabulary.tokenizer: {address} {said}") from None
    if trouble:
        say(f"vocabulary: the hub cannot be asked for {name} ({words(trouble)}); taken from the cache, at {revision}")
    return Found(f"hf:{name}@{revision}", files, _digest(files))


def adopt(found: Found) -> Adopted:
    """The tokenizer, ready. Raises DataError where the file is none, its ids leave gaps, or it cannot encode."""
    from tokenizers import Tokenizer

    path = found.files[TOKENIZER]
    try:
        with panics_as_errors():  # over ids that are no places, for one
            original = Tokenizer.from_file(str(path))
            ids = sorted(original.get_vocab(with_added_tokens=True).values())
    except Exception as error:  # the library raises bare Exception
        said = f"{found.name} is not a tokenizer ({first_line(error)}); give another."
        raise DataError(f"vocabulary.tokenizer: {said}") from None
    _check_ids(ids, found.name)
    whole = json.loads(original.to_str())  # after the ids: it lists each that none has (8 GB for one of 2^31)
    names = _names(whole, original, [_settings(found, name) for name in SETTINGS if name in found.files])
    added = [role for role in SPECIAL_IDS if original.token_to_id(names[role]) is None]
    special_ids = _complete(whole, original, names)
    whole["truncation"] = whole["padding"] = None
    if whole["model"].get("dropout"):
        whole["model"]["dropout"] = None  # chance has no place in a text's tokens
    tokenizer = Tokenizer.from_str(json.dumps(whole, ensure_ascii=False))
    if any(tokenizer.token_to_id(names[role]) != number for role, number in special_ids.items()):
        raise DataError(f"vocabulary.tokenizer: the special tokens of {found.name} get other ids when it is loaded.")
    _check_encodes(tokenizer, found.name)
    if tokenizer.encode("").ids != [special_ids["cls"], special_ids["sep"]]:
        set_template(tokenizer, special_ids)
    return Adopted(tokenizer, special_ids, [names[role] for role in added])


def _check_encodes(tokenizer: "Tokenizer", name: str) -> None:
    """Does its template work, of one text and of two? Has it something for what it does not know?"""
    for texts, trouble in (
        (("",), "breaks when it encodes a text (%s); mend its post_processor."),
        (("", ""), "breaks when it encodes two texts (%s); mend its post_processor."),
        ((UNKNOWN,), "cannot encode unknown characters (%s); give it an unknown token."),
    ):
        try:
            with panics_as_errors():
                tokenizer.encode(*texts)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"vocabulary.tokenizer: {name} {trouble % first_line(error)}") from None


def _check_ids(ids: list[int], name: str) -> None:
    """ids    of all tokens, ascending"""
    if not ids or ids[-1] != len(ids) - 1 or len(set(ids)) != len(ids):
        missing = next((number for number, found in enumerate(ids) if number != found), len(ids))
        raise DataError(
            f"vocabulary.tokenizer: {name} has {len(ids)} tokens, but ids up to {max(ids, default=0)} (none has "
            f"{missing}, or two have one); renumber them without a gap, or take another tokenizer."
        )


def _settings(found: Found, name: str) -> dict[str, Any]:
    try:
        read = json_of(found.files[name].read_bytes())
        json.dumps(read, ensure_ascii=False).encode()  # half of a surrogate pair is in no token's name
    except ValueError as error:
        raise DataError(f"vocabulary.tokenizer: {name} of {found.name} is not JSON ({error}); mend it.") from None
    return read if isinstance(read, dict) else {}


def _names(whole: Mapping[str, Any], tokenizer: "Tokenizer", settings: list[dict[str, Any]]) -> dict[str, str]:
    """The name of each special token: as the settings say, else a well-known one it has, else a new one. All differ."""
    there = [entry["content"] for entry in whole["added_tokens"]]
    names: dict[str, str] = {}
    for role in ("mask", "pad", "cls", "sep", "unk"):
        said = [_content(entry.get(f"{role}_token")) for entry in settings]
        model = [whole["model"].get("unk_token") or _unknown(whole)] if role == "unk" else []
        model = [name for name in model if name and tokenizer.token_to_id(name) is not None]
        known = [name for name in WELL_KNOWN[role] if name in there]
        free = [name for name in (*model, *said, *known, *_new(role, tokenizer)) if name and name not in names.values()]
        names[role] = free[0]
    return {role: names[role] for role in SPECIAL_IDS}


def _content(entry: Any) -> str:
    return str(entry.get("content") or "") if isinstance(entry, dict) else entry if isinstance(entry, str) else ""


def _unknown(whole: Mapping[str, Any]) -> str:
    """The name of a Unigram model's unknown token."""
    number, vocabulary = whole["model"].get("unk_id"), whole["model"].get("vocab")
    return str(vocabulary[number][0]) if isinstance(number, int) and isinstance(vocabulary, list) else ""


def _new(role: str, tokenizer: "Tokenizer") -> Iterator[str]:
    """A name that is no token yet."""
    names = (f"[{role.upper()}{number or ''}]" for number in range(len(SPECIAL_IDS) + tokenizer.get_vocab_size()))
    yield next(name for name in names if tokenizer.token_to_id(name) is None)


def _complete(whole: dict[str, Any], tokenizer: "Tokenizer", names: Mapping[str, str]) -> dict[str, int]:
    """Writes the special tokens into the JSON's list of added tokens. Returns their ids by role."""
    entries = {entry["content"]: entry for entry in whole["added_tokens"]}
    size, special_ids = tokenizer.get_vocab_size(), {}
    keeps_spaces = not DROPS_SPACES & {part["type"] for part in components(whole)} or has_metaspace(whole)
    for role, name in names.items():
        number = tokenizer.token_to_id(name)
        if number is None:
            number, size = size, size + 1
        lstrip = role == "mask" and keeps_spaces
        if role == "mask" or not entries.get(name, {}).get("special"):
            entries[name] = {"id": number, **named_token(name, lstrip)}
        special_ids[role] = number
    whole["added_tokens"] = sorted(entries.values(), key=lambda entry: int(entry["id"]))
    return special_ids
