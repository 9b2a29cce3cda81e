"""python -m pytest tests/tasks/test_redaction.py"""

import random
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.cleaning import Cleaner, Cleaning
from tasks.redaction import KINDS, addresses, emails, phones

CLEANER = Cleaner(Cleaning(redact=tuple(KINDS), min_characters=0))
LABEL = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Nd", "Cs"], exclude_characters="@:")))
def test_a_text_without_candidates_is_not_touched(text: str) -> None:
    assert emails(text) == text and addresses(text) == text and phones(text) == text
    assert "redact" not in CLEANER.clean(text).changed


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab.@:+-() 0123456789/<>v%\n", max_size=60))
def test_what_was_redacted_is_not_redacted_again(text: str) -> None:
    clean = CLEANER.clean(text).text
    assert CLEANER.clean(clean).changed == () and CLEANER.clean(clean).text == clean


@given(
    st.from_regex(r"[a-z0-9_%+]{1,20}(?:[.-][a-z0-9]{1,10})?", fullmatch=True),
    LABEL,
    st.sampled_from(["com", "de", "museum"]),
)
def test_every_usual_address_is_found(local: str, domain: str, top: str) -> None:
    assert emails(f"Write to {local}@{domain}.{top}, please.") == "Write to <email>, please."


@given(st.ip_addresses())
def test_every_ip_address_is_found(address: IPv4Address | IPv6Address) -> None:
    text = address.compressed
    groups = [group for group in text.split(":") if group]
    expected = "<ip>" if address.version == 4 or len(groups) >= 3 else text
    assert addresses(f"From {text} it came.") == f"From {expected} it came."


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Müller: jürgen.müller@example.org.", "Müller: <email>."),
        ("<a.b@c.example>;d@e.example", "<<email>>;<email>"),
        ("邮箱a@b.com请", "邮箱<email>请"),
        ("a@b, @name, user@localhost, 3 @ 5.00", None),
    ],
)
def test_emails(text: str, clean: str | None) -> None:
    assert emails(text) == (clean or text)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("10.0.0.1 and 8.8.8.8.", "<ip> and <ip>."),
        ("(192.168.1.1:8080)", "(<ip>:8080)"),
        ("(::ffff:10.0.0.1)", "(<ip>)"),
        ("on 2001:db8::1, fe80::1:2", "on <ip>, <ip>"),
        ("version 1.2.3.4, v1.2.3.4, Ver. 1.2.3.4, § 1.2.3.4 and Section 1.2.3.4 stay", None),
        ("999.1.1.1, 1.2.3, 1.2.3.4.5 and 1.2.3.4a are none", None),
        ("at 12:30:45 std::vector<a::b> 00:1a:2b:3c:4d:5e ::", None),
    ],
)
def test_addresses(text: str, clean: str | None) -> None:
    assert addresses(text) == (clean or text)


@pytest.mark.parametrize(
    "number",
    [
        "+49 30 901820", "+1 (415) 555-2671", "+442079460958", "+86 138-0013-8000", "(415) 555-2671", "415-555-2671",
        "415.555.2671", "1-800-555-2671", "030 90182000", "0171/1234567", "020 7946 0958", "01 42 68 53 00",
    ],
)  # fmt: skip
def test_telephone_numbers(number: str) -> None:
    assert phones(f"Call {number}, or write.") == "Call <phone>, or write."


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-31", "31.01.2020", "01-02-2003", "01/02/2003", "1984", "1914-1918", "12:30", "1,000,000", "3.14159265",
        "1234567890", "ISBN 0-306-40615-2", "ISBN 978-3-16-148410-0", "ISBN-10: 030 640 6152", "100 000 000", "+5 %",
        "+3000", "123-45-6789", "10 000-20 000", "1st 2nd", "-415 555 2671", "0.123 456 789", "x415-555-2671",
        "12 34 56 78", "MA 02111-1307", "(1992) 2006",
    ],
)  # fmt: skip
def test_other_numbers_stay(text: str) -> None:
    assert phones(f"It says {text} here.") == f"It says {text} here."


@pytest.mark.parametrize("piece", ["a", "a.", "a@", "1.", "1", "0:", "(0", "+1 ", "0 0", "a-.@", "1-1", "::", "a@a."])
def test_a_long_run_of_half_a_candidate_takes_linear_time(piece: str) -> None:
    """If it took squared time, this test would not come to an end."""
    for kind in KINDS.values():
        assert len(kind(piece * 200_000)) > 1000


def test_the_step_is_counted() -> None:
    random_ = random.Random(7)
    words = [random_.choice(["and", "the", "of", "house"]) for _ in range(30)]
    cleaned = CLEANER.clean(" ".join([*words, "a@b.example", *words, "10.0.0.1"]))
    assert cleaned.changed == ("redact",) and cleaned.text == " ".join([*words, "<email>", *words, "<ip>"])
    only = Cleaner(Cleaning(redact=("ip",))).clean(" ".join([*words, "a@b.example", *words, "10.0.0.1"]))
    assert only.text == " ".join([*words, "a@b.example", *words, "<ip>"])
