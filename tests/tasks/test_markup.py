"""python -m pytest tests/tasks/test_markup.py"""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.streams import Limits
from tests.tasks.made_files import development, put, read

SENTENCE = "Le café est à la carte, et l'été sera très long pour les élèves. "
BODY = "<p>" + SENTENCE * 8 + "</p>"


def page(head: str = "", body: str = BODY) -> str:
    return f"<!DOCTYPE html><html><head>{head}<title>t</title></head><body>{body}</body></html>"


@pytest.mark.parametrize("name", ["howto_unicode.html", "tutorial_classes.html"])
def test_the_main_text_of_a_page_is_taken_and_its_menus_are_not(tmp_path: Path, name: str) -> None:
    path = development("dirty", "html", name)
    (good,), bad = read(path, "html")
    assert not bad and good.offset == 0 and len(good.text) > 20_000
    assert "Previous topic" not in good.text and "<div" not in good.text and "previous |" not in good.text
    sentence = {"howto_unicode.html": "Unicode", "tutorial_classes.html": "Classes provide a means of bundling data"}[
        name
    ]
    assert sentence in good.text
    packed = put(tmp_path / "a.html.gz", gzip.compress(path.read_bytes()))
    assert read(packed, "html")[0][0].text == good.text


def test_the_same_bytes_give_the_same_text_in_any_order(tmp_path: Path) -> None:
    bodies = [BODY, BODY.replace("café", "thé"), BODY]
    paths = [put(tmp_path / f"{number}.html", page(body=body)) for number, body in enumerate(bodies)]
    texts = [[one.text for one in read(path, "html")[0]] for path in (*paths, *reversed(paths))]
    assert texts[:3] == texts[:2:-1] and texts[0] == texts[2] and all(texts)


@pytest.mark.parametrize(
    ("head", "encoding", "setting"),
    [
        ("", "utf-8", "utf-8"),
        ("", "utf-8-sig", "utf-8"),
        ("", "utf-16", "utf-8"),
        ('<meta charset="iso-8859-1">', "cp1252", "utf-8"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=windows-1252">', "cp1252", "utf-8"),
        ('<meta charset="iso-8859-1">', "utf-8", "utf-8"),
        ('<meta charset="nonsense">', "utf-8", "utf-8"),
        ('<meta charset="utf-8">', "cp1252", "cp1252"),
    ],
)
def test_a_page_is_decoded_by_what_its_bytes_and_it_say(tmp_path: Path, head: str, encoding: str, setting: str) -> None:
    path = put(tmp_path / "a.html", page(head).encode(encoding))
    (good,), bad = read(path, "html", encoding=setting)
    assert SENTENCE.strip() in good.text and not bad


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b" \n", "empty_file"),
        (page(body="<script>let menu = 1</script><!-- text -->").encode(), "no_main_text"),
        (b"\0" * 5000, "no_main_text"),
        (page().encode("cp1252"), "not_utf8"),
        (page('<meta charset="euc-jp">').encode("cp1252"), "invalid_encoding"),
        (page(body=BODY * 30).encode(), "page_too_long"),
        (b"<div>" * 3000, "no_main_text"),
    ],
)
def test_a_page_that_gives_no_text_is_refused_and_says_why(tmp_path: Path, data: bytes, reason: str) -> None:
    good, bad = read(put(tmp_path / "a.html", data), "html", Limits(line_bytes=16_000))
    assert not good and [(one.reason, one.bytes) for one in bad] == [(reason, len(data))]


def test_a_fragment_of_a_page_is_read_like_one(tmp_path: Path) -> None:
    assert SENTENCE.strip() in read(put(tmp_path / "a.html", BODY), "html")[0][0].text


def test_a_long_page_is_cut_like_a_record(tmp_path: Path) -> None:
    good, _ = read(put(tmp_path / "a.html", page(body=BODY * 3)), "html", Limits(record_characters=700))
    assert len(good) > 2 and max(len(one.text) for one in good) <= 700


WILD = ["<p>", "</p>", "<table>", "<td", "<!--", "-->", "<![CDATA[", "&#x110000;", "&#0;", "\0", "<script>", "é", '"']
WILD += ["text ", "<?xml version='1.0' encoding='x'?>", "<svg>", "\ud7ff", "&amp;" * 9, "<a href=", "<math>", "</html>"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WILD), max_size=40))
def test_wild_markup_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    good, bad = read(put(tmp_path_factory.mktemp("wild") / "a.html", "".join(parts)), "html")
    assert good or bad
