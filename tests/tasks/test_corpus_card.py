"""The corpus card shows what is there, whatever the texts say. python -m pytest tests/tasks/test_corpus_card.py"""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tasks import tracking
from tasks.artifacts import Built, Identity, Store
from tasks.corpus_card import markdown, render
from tasks.remarks import fates, remarks, whole
from tasks.sheet import UNSHOWN, bytes_of, in_html, in_markdown, share, short

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style>&amp;<!--",
    "`a` *b* | [c](d:e) \x00",
]
TEXTS = st.one_of(st.text(max_size=40), st.sampled_from(HOSTILE))
NUMBERS = st.integers(0, 10**12)
BALANCED = {
    "kept": NUMBERS,
    "duplicate": NUMBERS,
    "too_short": NUMBERS,
    "broken_json": NUMBERS,
    "odd <reason>": NUMBERS,
}


def source(name: str = "novels", sample: str = "It was a dark night.", licence: str = "public domain", **rejected: int):
    kept = rejected.pop("kept", 300)
    numbers = {reason: {"documents": n, "bytes": n, "characters": n} for reason, n in rejected.items()}
    came = kept + sum(rejected.values())
    books = {
        f"{unit}_{way}": n for unit in ("documents", "bytes", "characters") for way, n in (("in", came), ("kept", kept))
    }
    return books | {
        "name": name,
        "kind": "files",
        "licence": licence,
        "weight": "1",
        "files": 3,
        "bytes_cleaned": 0,
        "characters_cleaned": 0,
        "rejected": numbers,
        "changed": {"whitespace": 12} if kept else {},
        "lengths": [[64, 10], [1024, 290]] if kept else [],
        "languages": {"en": 90, "fr": 10} if kept else {},
        "languages_of": 100 if kept else 0,
        "samples": [{"source": f"{name}/a.txt", "offset": 1234, "text": sample}] if kept else [],
    }


def card(*sources: dict[str, Any]) -> dict[str, Any]:
    keys = [f"{unit}_{way}" for unit in ("documents", "bytes", "characters") for way in ("in", "kept")]
    totals = {key: sum(one[key] for one in sources) for key in [*keys, "bytes_cleaned", "characters_cleaned"]}
    kept = totals["documents_kept"]
    totals |= {"documents_train": kept - 200, "documents_validation": 100, "documents_test": 100, "copies": 0}
    sample = {"source": "novels/a.txt", "offset": 7, "text": "The same."}
    duplicates: dict[str, Any] = {
        "largest": [{"size": 5, "kept": sample, "dropped": [{"source": "novels/b.txt", "offset": 8}]}],
        "cluster_sizes": [[2, 3], [5, 1]],
        "enabled": True,
        "similarity": "0.8",
    }
    duplicates |= {"exact": 1, "near": 2, "near_heldout": 3, "clusters": 4, "words": 5, "bands": 20, "rows": 6}
    settings = {"cleaning.unicode": "NFC", "cleaning.languages": ["en"]}
    return {
        "totals": totals,
        "sources": list(sources),
        "duplicates": duplicates,
        "leakage": {"probes": 1000, "short": 2, "documents": 1},
        "settings": settings,
    }


class Reader(HTMLParser):
    """What a browser would see: tags (balanced), attributes, and the text of each element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.widths: list[float] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.widths += [
            float(n) for _, value in attributes for n in re.findall(r"(?:width|height):([\d.]+)%", value or "")
        ]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


TAGS = re.compile(
    "html|head|meta|title|style|body|main|h[1-4]|section|article|div|p|b|i|ul|li|span|code|details|summary|figure|"
    "figcaption|blockquote|bdi|table|tr|th|td"
)
MARKS = re.compile(
    "(paragraph|strong|table|thead|tbody|tr|th|td|blockquote|bullet_list|list_item)_(open|close)|inline|text|text_special|softbreak"
)
ATTRIBUTES = {
    "lang",
    "charset",
    "name",
    "content",
    "http-equiv",
    "class",
    "style",
    "title",
    "role",
    "aria-label",
    "dir",
    "open",
}


@given(TEXTS, TEXTS, TEXTS, st.fixed_dictionaries(BALANCED))
def test_whatever_the_texts_say_the_page_is_the_same_tags_and_shows_them(name, sample, licence, numbers):
    made = card(source(name, sample, licence, **numbers))
    page = render(made)
    page.encode()
    read = Reader(page)
    assert all(map(TAGS.fullmatch, read.tags)) and read.attributes <= ATTRIBUTES
    assert all(0 <= width <= 100 for width in read.widths)
    if numbers["kept"]:
        assert UNSHOWN.sub("\ufffd", sample).replace("\r\n", "\n") in "".join(read.texts).replace("\r\n", "\n")


@given(TEXTS, TEXTS)
def test_what_goes_into_markdown_comes_out_as_text(name, sample):
    def leaves(tokens):
        for token in tokens:
            yield token
            yield from leaves(token.children or [])

    made = card(source(name, sample, name, **{"odd <reason>|x": 3}))
    parsed = list(leaves(MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(markdown(made))))
    assert all(MARKS.fullmatch(token.type) for token in parsed)
    told = " ".join("".join(token.content for token in parsed if token.type in ("text", "text_special")).split())
    assert " ".join(UNSHOWN.sub("\ufffd", sample[:200]).split()) in told


def test_the_page_loads_nothing():
    assert not re.search(r"<script|url\(|https?:|@import|src=|href=", render(card(source())))


def test_the_same_card_is_the_same_page_also_after_json():
    made = card(source(), source("letters", licence="", too_short=4, near_duplicate=9))
    again = json.loads(json.dumps(copy.deepcopy(made)))
    assert render(made) == render(again) and markdown(made) == markdown(again)


@given(st.fixed_dictionaries(BALANCED))
def test_the_picture_balances_like_the_books(numbers):
    one = source(**numbers)
    assert sum(fates(one, "bytes").values()) == one["bytes_in"]
    together = whole(card(one, one))
    assert sum(fates(together, "documents").values()) == together["documents_in"] == 2 * one["documents_in"]


def test_what_cleaning_took_off_is_shown_and_what_it_added_is_not():
    assert fates(source() | {"bytes_cleaned": 5}, "bytes") == {"kept": 300, "cleaned": 5}
    assert fates(source() | {"bytes_cleaned": -5}, "bytes") == {"kept": 300}


@given(st.integers(0, 10**15), st.integers(1, 10**15))
def test_only_nothing_is_0_and_only_all_is_100_per_cent(part, of):
    said = share(min(part, of), of).replace("\u00a0", " ")
    assert (said == "0 %") == (part == 0) and (said == "100 %") == (part >= of)


def test_figures_are_short():
    assert [bytes_of(n).replace("\u00a0", " ") for n in (0, 999, 12_340, 5_600_000, 10**12)] == [
        "0 bytes", "999 bytes", "12.3 kB", "5.6 MB", "1.0 TB"
    ]  # fmt: skip
    assert [short(n) for n in (64, 1024, 1 << 20)] == ["64", "1k", "1M"]
    assert in_markdown("see http://a.b\n# x") == r"see http\://a.b \# x"


def without(made: dict[str, Any], *words: str) -> list[str]:
    return [line for line in remarks(made) if not any(word in line for word in words)]


def test_remarks_say_what_to_look_at_and_nothing_else():
    assert remarks(card(source())) == []
    assert "Nothing stands out" in render(card(source()))
    said = remarks(
        card(
            source(),
            source("empty", kept=0, missing_key=9, broken_json=2),
            source("thin", kept=100, too_short=400, duplicate=3),
            source("torn", kept=100, invalid_utf8=6),
            source("deutsch", licence="") | {"languages": {"de": 80, "en": 20}},
        )
    )
    assert said == [
        "Nothing of empty was kept; the commonest reason is missing_key.",
        "Less than half of thin was kept: 100 of 503 documents; the commonest reason is too_short.",
        "6 of 106 documents of torn are damaged; see quarantine.jsonl.",
        "deutsch is mostly in de, the corpus mostly in en.",
        "No licence is noted for deutsch.",
    ]
    made = card(source())
    made["duplicates"]["cluster_sizes"] = [[120, 1]]
    made["totals"]["documents_test"] = 12
    assert remarks(made) == [
        "One text stands 120 times, nearly unchanged; see the largest groups of copies.",
        "The test split has 12 documents; figures measured on so few say little.",
    ]


def test_what_was_not_looked_for_is_said_or_left_out():
    made = card(source())
    made["duplicates"] |= {"enabled": False, "clusters": 0, "cluster_sizes": [], "largest": []}
    made["leakage"] = None
    page = render(made)
    assert "near_duplicates.enabled is false" in page and "Evaluation text" not in page


def test_a_source_of_nothing_and_a_corpus_of_many_sources_have_a_card():
    assert "0</b> of 0 documents" in render(card(source(kept=0)))
    many = card(*(source(f"source {number}", "word " * 200, "", missing_key=number) for number in range(500)))
    assert len(markdown(many)) < 16_000 and "and 480 more sources" in markdown(many)
    assert render(many).count("<article>") == 500 and render(many).count("<details open>") == 0


def test_mlflow_gets_both_files_and_the_size_of_the_corpus(monkeypatch, tmp_path: Path):
    class Client:
        def __init__(self) -> None:
            self.files: list[str] = []
            self.profiles: list[str] = []

        def log_artifact(self, run: str, path: str) -> None:
            self.files.append(Path(path).name)

        def log_inputs(self, run: str, datasets: Any) -> None:
            self.profiles += [one.dataset.profile for one in datasets]

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            info = type("Info", (), {"run_id": "1", "start_time": 1})
            return lambda *_, **__: (
                [] if name == "search_runs" else type("Run", (), {"info": info, "experiment_id": "0"})
            )

    def build(workspace: Any) -> Built:
        for name in ("card.json", "card.html", "quarantine.jsonl"):
            (workspace.folder / name).write_text("{}")
        return Built({"documents_kept": 3, "bytes_kept": 90, "documents_in": 4}, {})

    manifest, _ = Store(tmp_path).make(Identity("corpus", 1, {}, {}), build)
    client = Client()
    monkeypatch.setattr(tracking, "connect", lambda home: client)
    monkeypatch.setattr(tracking, "experiment_id", lambda *_: "0")
    tracker = tracking.Tracker(tmp_path, "told", "run", "tiny")
    with tracker.stage("corpus") as run:
        run.record(manifest, False)
    tracker.made("corpus", manifest)
    tracker.end()
    assert not list((tmp_path / "outbox").iterdir())
    assert sorted(client.files) == ["card.html", "card.json"]
    assert [json.loads(one) for one in client.profiles] == [{"documents_kept": 3, "bytes_kept": 90}]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_stays_a_text(text):
    assert "<" not in in_html(text) and "<" not in in_markdown(text)
