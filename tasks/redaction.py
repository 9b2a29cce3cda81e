"""Redaction of what may belong to a person: e-mail addresses, IP addresses, telephone numbers.

Patterns with a check, as in datatrove and dolma: they find what is written the usual way, and promise no more than
that. Each replaces what it finds by a word that a vocabulary can hold: <email>, <ip>, <phone>.
"""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

_LOCAL = "A-Za-z0-9\u00c0-\u024f._%+'-"
_EMAIL = re.compile(
    rf"(?<![{_LOCAL}])[{_LOCAL}]{{1,64}}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?\.){{1,8}}[A-Za-z]{{2,24}}"
    r"(?![A-Za-z0-9-])"
)
_IPV4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\w|\.\w)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{1,4})?(?![\w:]|\.\w)"
)
_NUMBERED = re.compile(
    r"(?:\b(?:v|ver|versions?|release|sections?|chapter|clause|figure|table)\.?|§)\s*\Z", re.IGNORECASE
)
_PHONE = re.compile(
    r"""(?<![\w.,:/+%-])(?:
        \+[1-9](?:[ ./-]?(?:\([0-9]{1,4}\))?[ ./-]?[0-9]){6,14}             # +49 30 901820, +1 (415) 555-2671
      | \([0-9]{2,5}\)[ -]?[0-9]{2,4}(?:[ .-]?[0-9]{2,4}){1,3}              # (415) 555-2671
      | (?:1[-. ])?[2-9][0-9]{2}([-. ])[2-9][0-9]{2}\1[0-9]{4}              # 415-555-2671
      | (?!0[0-9]{4}-[0-9]{4}\b)0[1-9][0-9]{0,3}[ /-][0-9]{2,8}(?:[ -][0-9]{2,5}){0,4}    # 030 901820, 020 7946 0958
    )(?![\w%]|[-./,:][0-9])""",
    re.VERBOSE,
)
_BOOK = re.compile(r"IS[BS]N(?:-1[03])?:?\s*\Z", re.IGNORECASE)


def emails(text: str) -> str:
    """Addresses whose domain has a dot: a local part of Latin letters, digits and ._%+'-, up to 64 characters."""
    return _EMAIL.sub("<email>", text) if "@" in text else text


def addresses(text: str) -> str:
    """IPv4 and IPv6 addresses that the standard library takes for valid, private ones too.

    Four numbers with dots may also be a version or a section: those after such a word ("version 1.2.3.4", "§ 1.2.3.4")
    stay. An IPv6 address has at least three groups: "std::vector", "a::b" and "12:30:45" are none.
    """
    if text.count(":") >= 2:
        text = _IPV6.sub(lambda found: _ip(found, IPv6Address), text)
    if text.count(".") >= 3:
        text = _IPV4.sub(lambda found: _ip(found, IPv4Address), text)
    return text


def _ip(found: re.Match[str], kind: Callable[[str], object]) -> str:
    try:
        kind(found[0])
    except ValueError:
        return found[0]
    if kind is IPv4Address:
        stays = _NUMBERED.search(found.string, max(0, found.start() - 20), found.start())
        return found[0] if stays else "<ip>"
    return "<ip>" if sum(map(bool, re.split("[:.]", found[0]))) >= 3 else found[0]


def phones(text: str) -> str:
    """Telephone numbers of 7 to 15 digits (E.164) in groups: with a country code (+), an area code in brackets, the
    North American 3-3-4, or a trunk 0. Dates, years, prices, postal codes, plain numbers and what follows "ISBN"
    stay."""
    return _PHONE.sub(_phone, text)


def _phone(found: re.Match[str]) -> str:
    digits = sum(character.isdigit() for character in found[0])
    least = {"+": 8, "(": 9, "0": 9}.get(found[0][0], 7)
    if not least <= digits <= 15 or _BOOK.search(found.string, max(0, found.start() - 10), found.start()):
        return found[0]
    return "<phone>"


KINDS: dict[str, Callable[[str], str]] = {"email": emails, "ip": addresses, "phone": phones}
