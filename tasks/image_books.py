"""The books of a corpus of images, and what is said of them while it is made or found made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .books import is_fault, listed
from .folders import PASSED_OVER
from .image_sources import ORPHAN, SurveyedImages
from .progress import say

ORIGINS = {
    "file": "from the file of labels beside the images",
    "folder": "from the name of each image's folder",
    "column": "from the column label_key",
    "": "none",
}


def without_characters(page: dict[str, Any]) -> dict[str, Any]:
    """A page of the books as it is of images: nothing is cleaned off one, and it has no characters."""
    page = {key: value for key, value in page.items() if not key.startswith("characters") and key != "bytes_cleaned"}
    for numbers in page["rejected"].values():
        del numbers["characters"]
    return page


def tell(
    surveyed: Sequence[SurveyedImages],
    pages: Sequence[dict[str, Any]],
    folder: Path,
    unread: dict[str, dict[str, int]],
) -> None:
    """Says of each source where its labels come from, what was changed, dropped, quarantined and left unread."""
    for one, page in zip(surveyed, pages):
        name, origins = page["source"], page["labels_from"]
        lost = {reason: numbers["documents"] for reason, numbers in page["rejected"].items()}
        if page["documents_in"] and not page["documents_kept"]:
            say(f"corpus: {name}: NOTHING of {page['documents_in']} images was kept")
        if origins:
            said = [
                f"{ORIGINS[origin]}{f' ({number})' if len(origins) > 1 else ''}" for origin, number in origins.items()
            ]
            say(f"corpus: {name}: labels: {', '.join(said)}")
        if page["changed"]:
            most = 2 * max(page["changed"].get(step, 0) for step in ("resized", "recoloured")) > page["documents_in"]
            hint = "; set corpus.size and corpus.colour where the first image is not like most" if most else ""
            say(f"corpus: {name}: changed to fit: {listed(page['changed'])}{hint}")
        if dropped := {reason: number for reason, number in lost.items() if not is_fault(reason)}:
            say(f"corpus: {name}: dropped {listed(dropped)}")
        if faults := {reason: number for reason, number in lost.items() if is_fault(reason)}:
            say(f"corpus: {name}: quarantined {listed(faults)}; see {folder / 'quarantine.jsonl'}")
        if left := {**one.skipped, **unread.get(name, {})}:
            hint = "; their source's `format` would read them" if set(one.skipped) - {*PASSED_OVER, ORPHAN} else ""
            say(f"corpus: {name}: files left unread: {listed(left)}{hint}")
