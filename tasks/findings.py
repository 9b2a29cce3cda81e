"""What the corpus card shows, as data: sizes, lengths, languages, rejects, duplicates, sample documents, per source."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import packs
from .languages import identify
from .leakage import Probe
from .selection import KEPT, Decided, chunks

SAMPLES = 3
LOOKED_AT = 400
"""Documents of a source whose language is asked; a hash picks them."""
SAMPLE_CHARACTERS = 600
CLUSTERS = 5
COPIES_SHOWN = 5


def card(
    settings: Mapping[str, Any],
    decided: Decided,
    pages: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int],
    probe: Probe | None,
) -> dict[str, Any]:
    """The card of a corpus; a pure function of what was read, so it is part of the artifact.

    settings    the config, as mappings
    """
    totals = {key: value for key, value in counts.items() if not key.startswith("rejected_")}
    return {
        "totals": totals,
        "sources": [_source(decided, number, page) for number, page in enumerate(pages)],
        "duplicates": _duplicates(settings["near_duplicates"], decided, counts),
        "leakage": None
        if probe is None
        else {"probes": len(probe), "short": probe.short, "documents": counts.get("rejected_evaluation_leak", 0)},
        "settings": dict(_leaves({key: settings[key] for key in ("cleaning", "limits", "validation", "test")})),
    }


def _leaves(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        found += _leaves(value, f"{above}{key}.") if isinstance(value, Mapping) else [(above + key, value)]
    return found


def _source(decided: Decided, number: int, page: Mapping[str, Any]) -> dict[str, Any]:
    one = decided.selection.surveyed[number]
    first, last = decided.spans[number]
    lengths, chosen = Counter[int](), np.zeros(0, np.int64)
    for low, high in chunks(last - first, first):
        kept = np.flatnonzero(decided.verdict[low:high] == KEPT)
        characters = decided.columns.read("sizes", low, high, 1)[kept]
        # 2^⌊log2⌋: exact, by the exponent that frexp finds
        lengths.update(np.frexp(characters.astype(np.float64))[1].tolist())
        chosen = _smallest(decided, np.concatenate([chosen, kept + low]))
    languages = Counter(identify(_text(decided, document))[0] for document in sorted(chosen.tolist()))
    return {
        **{key: value for key, value in page.items() if key != "source"},
        "name": one.source.name,
        "kind": one.kind,
        "licence": one.source.licence,
        "weight": one.source.weight,
        "files": len(one.items),
        "lengths": [[1 << exponent - 1, documents] for exponent, documents in sorted(lengths.items())],
        "languages": dict(sorted(languages.items(), key=lambda pair: (-pair[1], pair[0]))),
        "languages_of": languages.total(),
        "samples": [_excerpt(decided, document) for document in chosen[:SAMPLES].tolist()],
    }


def _smallest(decided: Decided, documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """LOOKED_AT documents that a hash picks: those with the smallest low half of the id."""
    low = np.zeros(len(documents), np.uint64)
    for start in range(0, len(documents), LOOKED_AT):  # in portions: they may lie far apart
        some = documents[start : start + LOOKED_AT]
        low[start : start + LOOKED_AT] = decided.columns.ids(int(some.min()), int(some.max()) + 1)[some - some.min(), 1]
    return documents[np.argsort(low, kind="stable")[:LOOKED_AT]]


def _row(decided: Decided, document: int) -> Any:
    (run,) = decided.columns.between(document, document + 1)
    return packs.texts(decided.selection.folder, run.pack, run.first + document - run.start, 1)


def _text(decided: Decided, document: int) -> str:
    return str(_row(decided, document)["text"][0].as_py())


def _excerpt(decided: Decided, document: int) -> dict[str, Any]:
    text = _text(decided, document)
    short = text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS].rstrip() + " …"
    return {**_where(decided, document), "text": short}


def _where(decided: Decided, document: int) -> dict[str, Any]:
    return {
        "source": decided.selection.file_of(document).label,
        "offset": _row(decided, document)["offset"][0].as_py(),
    }


def _duplicates(near: Mapping[str, Any], decided: Decided, counts: Mapping[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "exact": counts.get("rejected_duplicate", 0),
        "near": counts.get("rejected_near_duplicate", 0),
        "near_heldout": counts.get("rejected_near_heldout", 0),
        **near,
    }
    clusters = decided.clusters
    if clusters is None:
        return found | {"clusters": 0, "cluster_sizes": [], "largest": []}
    largest = []
    for documents in clusters.largest[:CLUSTERS]:
        stays = [document for document in documents.tolist() if decided.verdict[document] == KEPT]
        goes = [document for document in documents.tolist() if document not in stays]
        shown = stays[0] if stays else goes[0]  # its weight may have dropped the one that stayed
        dropped = [_where(decided, document) for document in goes[:COPIES_SHOWN]]
        largest.append({"size": len(documents), "kept": _excerpt(decided, shown), "dropped": dropped})
    return found | {
        "clusters": clusters.number,
        "cluster_sizes": sorted([size, number] for size, number in clusters.sizes.items()),
        "largest": largest,
    }
