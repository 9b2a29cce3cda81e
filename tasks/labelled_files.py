"""Files of labelled examples, row by row: each row is an example, or the reason why it is none.

    jsonl   .jsonl .ndjson     one object a line; keys may be dotted paths
    csv     .csv               quoted as RFC 4180 has it, so that a field may hold commas, quotes and line ends
    tsv     .tsv               split at tabs, nothing quoted: a quote is a character, as in the files of GLUE
    cola    by `format` only   the raw CoLA: source, label, mark of the authors, sentence, without a header
    rte     .xml               pairs of the RTE challenges: <pair value="TRUE"><t>text</t><h>hypothesis</h></pair>
    lines   one file a class   each line is a text

In csv and tsv the columns go by name where the file has a header and by number, from 1, where it has none. Rows that
cannot be used are told by reason, for the caller to count:

    malformed     no JSON object, or another number of columns than the header (without one: than most rows)
    undecodable   bytes that are not of the encoding, or half of a surrogate pair
    empty_text    a text, or the second text of a pair, of blanks only, null or not there
    no_label      a label that is empty, null or not there
"""

import codecs
import csv
import difflib
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

from .errors import UsageError
from .records import lookup, named

FORMATS = ("jsonl", "csv", "tsv", "cola", "rte", "lines")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".xml": "rte"}
ENTAILMENT = {"TRUE": "entailment", "YES": "entailment", "FALSE": "not_entailment", "NO": "not_entailment"}
"""The first two challenges name the same two classes in two ways; here they are called as in GLUE."""


@dataclass(frozen=True)
class Example:
    """One or two texts, in NFC and without blanks around them, and what they are."""

    text: str
    label: str
    pair: str = ""
    """The second text; "" where there is one only."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text, self.pair) if self.pair else (self.text,)


Row = tuple[int, Example | str]
"""The number of its line, and the example or the reason why it is none."""


@dataclass(frozen=True)
class Columns:
    """Where a row has its texts and its label: keys, names of columns, or numbers of columns from 1."""

    text: str = "text"
    label: str = "label"
    pair: str = ""

    @property
    def asked(self) -> tuple[str, ...]:
        return (self.text, self.label, self.pair) if self.pair else (self.text, self.label)


def format_of(path: Path) -> str:
    """By the name's end. Raises UsageError where that says nothing."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"evaluate: of {path} the name does not tell the format; set `format` to one of {', '.join(FORMATS)}."
        )
    return SUFFIXES[path.suffix.lower()]


def rows(path: Path, form: str, columns: Columns, encoding: str = "utf-8", label: str = "") -> Iterator[Row]:
    """The rows of a file, blank lines left out.

    label   what all rows of a file of lines are
    Raises UsageError for a file that is not there or has another encoding, a column that it does not have, XML that
    breaks off, and a quote that is never closed.
    """
    if form == "rte":
        return _pairs(path)
    text = read_text(path, encoding)
    if form == "jsonl":
        return _objects(text, columns)
    if form == "lines":
        return ((number, _example(line, label, "", False)) for number, line in _lines(text))
    return _cells(path, text, form, Columns("4", "2") if form == "cola" else columns)


def read_text(path: Path, encoding: str) -> str:
    """A whole file; bytes of UTF-8 that are none become halves of surrogate pairs, so that one line only is lost."""
    try:
        data = path.read_bytes()
        if codecs.lookup(encoding).name == "utf-8":
            return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
        return data.decode(encoding)
    except OSError as error:
        raise UsageError(f"evaluate: {path} cannot be read ({error.strerror}); correct its address.") from None
    except (UnicodeError, LookupError) as error:
        raise UsageError(f"evaluate: {path} cannot be read as {encoding} ({error}); set `encoding`.") from None


def tidied(text: str) -> str:
    """NFC, without blanks at the ends."""
    return unicodedata.normalize("NFC", text).strip()


def is_unicode(*texts: str) -> bool:
    """No half of a surrogate pair: those of JSON, and bytes that were none of UTF-8."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _example(text: Any, label: Any, pair: Any, paired: bool) -> Example | str:
    """An example of what a row has, or the reason why it is none."""
    if isinstance(label, bool):
        label = str(label).lower()
    texts = [tidied(one) if isinstance(one, str) else "" for one in ((text, pair) if paired else (text,))]
    label = tidied(str(label)) if isinstance(label, str | int | float) else ""
    if not is_unicode(*texts, label):
        return "undecodable"
    if not all(texts):
        return "empty_text"
    return Example(texts[0], label, texts[1] if paired else "") if label else "no_label"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Line ends are those of files, \\n and \\r\\n; a text may hold U+2028 and the like."""
    return ((number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _objects(text: str, columns: Columns) -> Iterator[Row]:
    for number, line in _lines(text):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            yield number, "malformed"
            continue
        text, label, *pair = (lookup(record, key) for key in columns.asked)
        yield number, _example(text, label, pair[0] if pair else "", bool(pair))


def _cells(path: Path, text: str, form: str, columns: Columns) -> Iterator[Row]:
    found = list(_csv(path, text) if form == "csv" else _tsv(text))
    if not found:
        return
    by_number = all(column.isdecimal() and len(column) < 10 for column in columns.asked)
    if by_number:
        width = Counter(len(cells) for _, cells in found).most_common(1)[0][0]
        places = [int(column) - 1 for column in columns.asked]
        if min(places) < 0 or max(places) >= width:
            raise UsageError(
                f"evaluate: {path} has {width} columns, numbered from 1, and none for {max(columns.asked, key=int)}; "
                "correct `text`, `pair` and `label`, or set `format`."
            )
    else:
        (_, header), *found = found
        width, places = len(header), _places(path, [cell.strip() for cell in header], columns.asked)
    for number, cells in found:
        if len(cells) != width:
            yield number, "malformed"
        else:
            one, label, *pair = (cells[place] for place in places)
            yield number, _example(one, label, pair[0] if pair else "", bool(pair))


def _places(path: Path, header: Sequence[str], asked: Sequence[str]) -> list[int]:
    for column in asked:
        if column not in header:
            near = difflib.get_close_matches(column, header, 1)
            hint = f"did you mean {near[0]!r}?" if near else "without a header, columns go by number, from 1."
            raise UsageError(f"evaluate: {path}, line 1: no column {column!r}, it has {named(list(header))}; {hint}")
    return [header.index(column) for column in asked]


def _tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split("\t")) for number, line in _lines(text))


def _csv(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """A row that the module cannot read has no cells, which is a number of columns that no row has to have."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise UsageError(
                    f"evaluate: {path}, line {line}: a quote is never closed, so nothing behind it can be read; close "
                    "it, or set `format` to tsv where nothing is quoted."
                ) from None
            cells = []
            yield line, cells
            continue
        if any(cell.strip() for cell in cells):
            yield line, cells


class _Pairs:
    """What stands between the marks of an RTE file.

    A DOCTYPE is passed over, since the files of the challenges have one; an entity declared in it is refused: it could
    make a text of any length from a few bytes, or name another file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.found, self.inside = path, list[Row](), ""
        self.attributes: Mapping[str, str] = {}
        self.texts: dict[str, list[str]] = {}
        self.line = 0
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler, self.parser.EndElementHandler = self._start, self._end
        self.parser.CharacterDataHandler, self.parser.EntityDeclHandler = self._characters, self._entity

    def _entity(self, name: str, *_: Any) -> None:
        line = self.parser.CurrentLineNumber
        raise UsageError(f"evaluate: {self.path}, line {line}: it declares an entity, {name!r}, which is refused.")

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        if name == "pair":
            self.attributes, self.texts, self.line = attributes, {"t": [], "h": []}, self.parser.CurrentLineNumber
        self.inside = name

    def _characters(self, data: str) -> None:
        if self.inside in self.texts:
            self.texts[self.inside].append(data)

    def _end(self, name: str) -> None:
        self.inside = ""
        if name == "pair":
            text, hypothesis = (" ".join("".join(self.texts[key]).split()) for key in ("t", "h"))
            label = self.attributes.get("entailment") or self.attributes.get("value") or ""
            label = ENTAILMENT.get(label.strip().upper(), label)
            self.found.append((self.line, _example(text, label, hypothesis, True)))


def _pairs(path: Path) -> Iterator[Row]:
    pairs = _Pairs(path)
    try:
        pairs.parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise UsageError(f"evaluate: {path} cannot be read ({error.strerror}); correct its address.") from None
    except expat.ExpatError as error:
        raise UsageError(f"evaluate: {path} is no whole XML ({error}); get it anew.") from None
    return iter(pairs.found)
