"""What the corpus card says in words: which kind of reason a reject is, what it means, what a person should look at.

A card (findings.py) is data; a remark is one sentence about it that may change what its reader does next.
"""

from collections.abc import Mapping
from typing import Any

from .books import is_fault

FATES = {
    "kept": "kept",
    "copies": "copies",
    "evaluation": "evaluation text",
    "filtered": "filtered",
    "left_out": "left out by weight or budget",
    "damaged": "damaged",
    "cleaned": "cleaned off",
}
"""What can become of text that was read -> how it is called; in the order of the pictures."""
FATE_OF = {
    "duplicate": "copies",
    "near_duplicate": "copies",
    "near_heldout": "copies",
    "repeated": "copies",
    "evaluation_leak": "evaluation",
    "over_budget": "left_out",
    "downsampled": "left_out",
}
"""Of the reasons that are neither a filter's nor a fault."""
MEANINGS = {
    "archive_bomb": "unpacks to far more than it holds",
    "binary": "no text",
    "changed_since_install": "not what its package installed",
    "downsampled": "a weight below 1 leaves it out",
    "duplicate": "the same text stands before it",
    "empty": "nothing left after cleaning",
    "evaluation_leak": "shares 13 words in a row with an evaluation file",
    "invalid_utf8": "a line or value that is not UTF-8",
    "language": "in none of the wanted languages",
    "lone_surrogate": "half of a character pair",
    "missing_key": "no such key or column; check text_key",
    "near_duplicate": "nearly the same as another document",
    "near_heldout": "nearly the same as a held-out document",
    "no_main_text": "a page with no text of its own",
    "not_prose": "more code or tables than prose",
    "not_text": "the value is no string",
    "not_utf8": "a file in another encoding; set encoding",
    "over_budget": "the source's budget was used up",
    "repeated": "its sentences stand in other files too",
    "too_long": "more characters than max_characters",
    "too_short": "fewer characters than min_characters",
    "trailing_junk": "something follows the end of the archive",
    "truncated_archive": "ends before the archive does",
    "unreadable": "no permission, or a read error",
    "utf16": "UTF-16 or UTF-32; set encoding",
}
"""Of the reasons whose name does not say all."""
FEW_HELD_OUT = 100
"""Figures that are measured on fewer documents say little."""
MANY_COPIES = 20
ENOUGH_TO_JUDGE = 20
"""Documents whose language was identified, at least, before a source is said to be in another language."""


def fate(reason: str) -> str:
    """What kind of reason it is: a key of FATES."""
    return "damaged" if is_fault(reason) else FATE_OF.get(reason, "filtered")


def meaning(reason: str) -> str:
    """A few words about a reason; "" where its name says all."""
    rule = {"c4": "a rule of C4", "gopher": "a rule of Gopher"}.get(reason.partition("_")[0], "")
    return MEANINGS.get(reason, rule)


def fates(page: Mapping[str, Any], unit: str) -> dict[str, int]:
    """What became of the documents, bytes or characters that came in; a step that made them longer took off none."""
    found = dict.fromkeys(FATES, 0)
    found["kept"] = page[f"{unit}_kept"]
    for reason, numbers in page["rejected"].items():
        found[fate(reason)] += numbers[unit]
    found["cleaned"] = max(0, page.get(f"{unit}_cleaned", 0))
    return {name: number for name, number in found.items() if number}


def whole(card: Mapping[str, Any]) -> dict[str, Any]:
    """The books, lengths, languages and cleaning steps of all sources together, as those of a source."""
    totals = card["totals"]
    page: dict[str, Any] = {**totals, "rejected": {}, "changed": {}, "languages": {}, "languages_of": 0, "lengths": []}
    lengths: dict[int, int] = {}
    for source in card["sources"]:
        for reason, numbers in source["rejected"].items():
            _add(page["rejected"].setdefault(reason, {}), numbers)
        for name in ("changed", "languages"):
            _add(page[name], source[name])
        _add(lengths, dict(source["lengths"]))
        page["languages_of"] += source["languages_of"]
    return page | {"lengths": [[start, number] for start, number in sorted(lengths.items())]}


def _add(to: dict[Any, int], numbers: Mapping[Any, int]) -> None:
    for name, number in numbers.items():
        to[name] = to.get(name, 0) + number


def ranked(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    """The largest first, of equal ones by name; what was never counted is left out."""
    return sorted(((name, number) for name, number in numbers.items() if number), key=lambda one: (-one[1], one[0]))


def remarks(card: Mapping[str, Any]) -> list[str]:
    """What a person should look at first, in plain sentences; an empty list where nothing stands out."""
    found = [remark for source in card["sources"] if (remark := _of_source(source))]
    everything = ranked(whole(card)["languages"])
    if everything:
        for source in card["sources"]:
            code, number = (ranked(source["languages"]) or [("", 0)])[0]
            if code != everything[0][0] and number and source["languages_of"] >= ENOUGH_TO_JUDGE:
                found.append(f"{source['name']} is mostly in {code}, the corpus mostly in {everything[0][0]}.")
    largest = max((size for size, _ in card["duplicates"]["cluster_sizes"]), default=0)
    if largest >= MANY_COPIES:
        found.append(f"One text stands {largest:,} times, nearly unchanged; see the largest groups of copies.")
    for split in ("validation", "test"):
        number = card["totals"].get(f"documents_{split}", 0)
        if 0 < number < FEW_HELD_OUT:
            found.append(f"The {split} split has {number} documents; figures measured on so few say little.")
    if unknown := [source["name"] for source in card["sources"] if not source["licence"]]:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        found.append(f"No licence is noted for {', '.join(unknown[:3])}{more}.")
    return found


def _of_source(source: Mapping[str, Any]) -> str:
    """A source of which little is left, or much is damaged."""
    came, kept, name = source["documents_in"], source["documents_kept"], source["name"]
    documents = {reason: numbers["documents"] for reason, numbers in source["rejected"].items()}
    reason = (ranked(documents) or [("", 0)])[0][0]
    damaged = fates(source, "documents").get("damaged", 0)
    if not kept:
        return f"Nothing of {name} was kept" + (f"; the commonest reason is {reason}." if reason else ".")
    if 2 * kept < came:
        return f"Less than half of {name} was kept: {kept:,} of {came:,} documents; the commonest reason is {reason}."
    if 20 * damaged > came:
        return f"{damaged:,} of {came:,} documents of {name} are damaged; see quarantine.jsonl."
    return ""
