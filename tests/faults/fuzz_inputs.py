"""What people give: recipes, schedules, sources of text and of images, evaluation sets, tokenizers of others.

A source never refuses more than it must: whatever its bytes, documents or named refusals come out of it, and of a packed
file with a checksum never another document without a word.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from backports import zstd
from hypothesis import strategies as st

from flows import deployments, recipes
from tasks import evidence
from tasks.adopted import adopt, find
from tasks.artifacts import Workspace
from tasks.cloze_file import ClozeConfig, items_of
from tasks.examples import ClassificationConfig, TaggingConfig, read_examples
from tasks.folders import static_part
from tasks.image_decoding import ImageLimits
from tasks.pairs_file import MinimalPairsConfig, pairs_of
from tasks.reading import documents
from tasks.remotes import is_remote, local
from tasks.sources import Source, survey
from tasks.streams import Document, Item, Limits
from tasks.tokens import encode
from tasks.treebank import read_treebank
from tests.faults.fuzz import Build, Parser, Silent
from tests.faults.fuzz_cases import ODD, Case

YAML = tuple(
    text.encode()
    for text in (
        *("? {a: b}\n: c\n", "? [a]\n: c\n", "&a [*a]", "&a {b: *a}", "*b", "<<: *a\n", "<<: 3\n", "<<: [{a: 1}]\n"),
        *(
            "!!int abc",
            "!!float x",
            "!!binary é",
            "!!timestamp y",
            "!!set {a}",
            "!!omap [a]",
            "!!pairs [x]",
            "!!bool x",
        ),
        *("!!python/object/apply:os.system [x]", "!!python/name:os.system", "!x y", "!!null 3", "!!str [a]", "!!map 3"),
        *(
            "2001-99-99",
            "2001-01-01",
            "0x_",
            "0b2",
            "1:99",
            ".inf",
            "-.nan",
            "1_000",
            "0o7",
            "=",
            "~",
            "on",
            "\t",
            "--- ",
            "...\n",
        ),
        *("%YAML 9.9\n", "- " * 400, "{" * 400, "[" * 400, "'", '"', "|\n", ">\n", "#", "&", "*", "? ", ": ", "- "),
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
        "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f]\n",
    )
)
RECIPES = (
    b"corpus:\n  sources:\n    - {uri: FILE, budget_bytes: 200_000, weight: 1/2}\n  limits: {line_bytes: 1000}\n",
    b"corpus: {sources: [FILE]}\nvocabulary: {size: 384}\nshards: {length: 32, rate: 0.3}\nregister: {name: tiny}\n",
    b"corpus: {sources: [FILE]}\npretrain:\n  size: tiny  # small\n  steps: 20\n  batch_tokens: 512\n",
    b"corpus: {sources: [FILE]}\nevaluate:\n  rates: [0.15]\n  cloze: [{name: a, file: FILE}]\n  sentences: ['A [MASK].']\n",
)
SMALL = b"corpus: {sources: [FILE]}\n"
Values = st.recursive(
    st.sampled_from([one for one in ODD if one == one]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


# Recipes and schedules


@st.composite
def settings_of(draw: st.DrawFn) -> bytes:
    """Settings that exist, with values of all kinds."""
    known = list(recipes.keys())
    whole: dict[str, Any] = {"corpus": {"sources": ["FILE"]}}
    for _ in range(draw(st.integers(1, 5))):
        *above, last = draw(st.sampled_from(known))
        place: Any = whole
        for part in above:
            place = place.setdefault(part, {}) if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place[last] = draw(Values)
    if draw(st.booleans()):
        return json.dumps(whole).encode()
    return yaml.safe_dump(whole, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")


def recipe(folder: Path) -> Parser:
    """A recipe's file."""
    path = folder / "recipe.yaml"

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        recipes.load(str(path))

    examples = [*RECIPES, *(json.dumps(yaml.safe_load(one)).encode() for one in RECIPES)]
    return Parser(examples, read, "json", None, settings_of(), YAML)


def words(folder: Path) -> Parser:
    """Words of --set and --source."""
    path = folder / "recipe.yaml"
    path.write_bytes(SMALL)

    def read(case: Case) -> None:
        source, _, setting = case.data.decode("utf-8", "surrogateescape").partition("\x1f")
        recipes.load(str(path), [source], [setting])

    examples = [
        f"{path}\x1fpretrain.steps=10",
        "hf:name\x1fcorpus.sources=[{uri: a, weight: 2}]",
        "s3://b\x1fvocabulary={size: 300}",
    ]
    return Parser(
        [one.encode() for one in examples], read, pieces=(*YAML, b"=", b".", b"\x1f", b"pretrain.", b"evaluate.")
    )


def schedules(folder: Path) -> Parser:
    """The file of the deployments."""
    small, path = folder / "recipe.yaml", folder / "prefect.yaml"
    small.write_bytes(SMALL)
    one = {
        "name": "nightly",
        "entrypoint": "flows/mlm.py:data",
        "schedules": [{"cron": "0 2 * * *", "parameters": {"set": []}}],
    }
    one |= {
        "parameters": {"recipe": str(small), "source": ["x"], "set": ["pretrain.steps=3"]},
        "work_pool": {"name": "a"},
    }
    whole = json.dumps({"pull": None, "deployments": [one]}).encode()

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        sorted({(one.get("work_pool") or {}).get("name", "") for one in deployments.check(path)})

    return Parser([whole], read, "json", pieces=YAML)


# Sources of text

TEXTS = ["The first text of a file, with words.", "Zweiter Text, länger:\n\nmit Absätzen.", "x" * 300, "終わり"]
JSONL = b"".join(json.dumps({"text": text, "n": {"a": [text]}}, ensure_ascii=False).encode() + b"\n" for text in TEXTS)
PAGE = """<html><head><title>Title</title><meta charset="utf-8"></head><body><nav>menu</nav><article><h1>A title</h1>
<p>A paragraph with enough words to be the main text of a page, and some more of them.</p><p>Another &amp; one &#8364;
<b>bold</b></p><script>var x = 1;</script><table><tr><td>1</td></tr></table></article></body></html>""".encode()
PYTHON = (
    '"""'
    + "A docstring with prose in it, long enough to be taken for documentation. " * 4
    + '"""\n\ndef f(x=[1, {2: 3}]):\n    """Short."""\n    return x\n'
)


def columns(kind: str, **options: Any) -> bytes:
    table = pa.table({"text": TEXTS, "n": [1.5, None, 3.0, 4.0], "meta": [{"text": one} for one in TEXTS]})
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        pq.write_table(table, sink, row_group_size=2, write_page_checksum=True, **options)
    else:
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def text(folder: Path, kind: str, name: str, examples: Callable[[], list[bytes]], **more: Any) -> Parser:
    """A file of a source, as the corpus reads it. `packed`: its bytes have a checksum."""
    path, packed = folder / name, more.pop("packed", False)
    limits = Limits(line_bytes=1 << 16)
    whole = [data for data in examples()]

    def taken(data: bytes) -> tuple[list[str], bool]:
        path.write_bytes(data)
        item = Item(kind, str(path), name, "0" * 64, len(data), stamp=_stamp(path), **more)
        found, refused = [], False
        for event in documents(item, limits):
            if isinstance(event, Document):
                found.append(event.text)
                event.text.encode()
            else:
                refused = True
        return found, refused

    expected = [taken(data) for data in whole]

    def read(case: Case) -> str | None:
        found, refused = taken(case.data)
        if not found and not refused and kind != "python":
            raise Silent("neither a document nor a refusal")
        if packed and case.origin is not None and not refused and found != expected[case.origin][0]:
            raise Silent("other documents came out of a damaged archive")
        return "rejected" if refused else None

    return Parser(whole, read, "lines" if kind == "records" and not packed else "bytes")


def _stamp(path: Path) -> tuple[int, ...]:
    now = path.stat()
    return now.st_size, now.st_mtime_ns, now.st_ino, now.st_ctime_ns


def zstandard(data: bytes) -> bytes:
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


def surveyed(folder: Path) -> Parser:
    """Addresses of sources: what a recipe may name."""
    (folder / "a").mkdir()
    (folder / "a" / "b.txt").write_text("text")

    def read(case: Case) -> str | None:
        uri = case.data.decode("utf-8", "surrogateescape")
        with contextlib.chdir(folder):
            source = Source(uri)
            place = static_part(Path(os.path.expanduser(local(uri))))
            if (
                is_remote(uri)
                or uri.startswith("hf:")
                or (place.is_absolute() and folder not in (place, *place.parents))
            ):
                return "rejected"  # another machine, or much of this one
            if ".." in place.parts:
                return "rejected"
            survey([source], folder / "store")
        return None

    names = ["a", "a/*.txt", "a/**/b.txt", "a/b.txt", "file://" + str(folder / "a")]
    pieces = (b"*", b"[", b"]", b"?", b"**/", b"\0", b"~", b"/", b"file://", b"hf:/", b"installed-docs:", b"{", b"a")
    return Parser([name.encode() for name in names], read, pieces=pieces)


def corpus_ids(folder: Path) -> Parser:
    """The table of a corpus, where its ids are read without its digest."""
    path = folder / "documents-00000.parquet"
    table = pa.table({"text": TEXTS, "id": ["a", "b", "c", "d"], "split": ["train", "test"] * 2})
    pq.write_table(table, path, write_page_checksum=True)

    corpus: Any = SimpleNamespace(files=[path.name], path=lambda name: path)

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        evidence.document_ids(corpus, "test")

    return Parser([path.read_bytes()], read)


# Sources of images


def image(folder: Path, name: str) -> Parser:
    """A file of images, and each image that is in it."""
    from tests.tasks.made_images import read as read_images
    from tests.tasks.test_image_files import FILES

    path, limits = folder / name, ImageLimits(file_bytes=1 << 20, pixels=1 << 16)

    def read(case: Case) -> str | None:
        path.write_bytes(case.data)
        kept, rejects = read_images(path, limits)
        if not kept and not rejects and ".tar" not in name:
            raise Silent("neither an image nor a refusal")
        return "rejected" if rejects else None

    return Parser([FILES[name]], read)


# Evaluation sets and tokenizers

PAIRS = b"".join(
    json.dumps({"sentence_good": f"Good {n}.", "sentence_bad": f"Bad {n}.", "UID": "u", "field": "f"}).encode() + b"\n"
    for n in range(4)
)
CLOZE = b"".join(json.dumps({"text": f"A {n} [MASK].", "answers": ["x", "y"]}).encode() + b"\n" for n in range(4))
ROWS = [("A good film", "yes"), ('He said, "no"', "no"), ("Third text", "yes"), ("Fourth, é", "no")] * 5
CSV = b"text,label\n" + b"".join(
    f'"{one.replace(chr(34), chr(34) * 2)} {n}",{label}\n'.encode() for n, (one, label) in enumerate(ROWS)
)
TSV = b"text\tlabel\n" + b"".join(f"{one} {n}\t{label}\n".encode() for n, (one, label) in enumerate(ROWS))
LABELLED = b"".join(
    json.dumps({"text": f"{one} {n}", "label": label}).encode() + b"\n" for n, (one, label) in enumerate(ROWS)
)
COLA = b"".join(f"x\t{n % 2}\t*\tSentence {n}\n".encode() for n in range(20))
RTE = (
    b'<?xml version="1.0"?><entailment-corpus>'
    + b"".join(
        f'<pair id="{n}" value="{"TRUE" if n % 2 else "FALSE"}"><t>Text {n} &amp; é</t><h>It {n}</h></pair>'.encode()
        for n in range(20)
    )
    + b"</entailment-corpus>"
)
TREE = b"".join(
    f"# sent {n}\n1-2\tdon't{n}\t_\t_\t_\t_\t_\t_\t_\t_\n1\tdo\t_\tAUX\t_\t_\t_\t_\t_\t_\n2\tn't\t_\tPART\t_\t_\t_\t_\t_\t_\n"
    f"2.1\tx\t_\t_\t_\t_\t_\t_\t_\t_\n3\tgo{n}\t_\tVERB\t_\t_\t_\t_\t_\tSpaceAfter=No\n\n".encode()
    for n in range(20)
)


def evaluation(
    folder: Path, name: str, example: bytes, form: str, config: Callable[[str], Callable[[], Any]]
) -> Parser:
    """A file of an evaluation set."""
    path = folder / name
    reader = config(str(path))

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        reader()

    pieces = (
        b"\t",
        b",",
        b"\n\n",
        b"<pair>",
        b"<!DOCTYPE x [<!ENTITY a 'b'>]>",
        b"&a;",
        b"1-99",
        b"<![CDATA[",
        b"\x0b",
        b"1.1\t",
    )
    return Parser([example], read, form, pieces=pieces)


def silent(_: str) -> None:
    """Where a reader tells what it left out."""


def classified(path: str, **more: Any) -> Callable[[], Any]:
    config = ClassificationConfig("a", path, **more)
    return lambda: read_examples(config, silent)


def tokenizer(folder: Path, of: str = "tokenizer.json") -> Parser:
    """A tokenizer that is adopted: read, completed, written as a vocabulary, and a text encoded with it."""
    from tests.faults.fuzz_served import small_tokenizers

    pages = small_tokenizers()
    settings = json.dumps({"mask_token": {"content": "<m>"}, "pad_token": "[PAD]", "unk_token": None}).encode()
    (folder / "tokenizer.json").write_bytes(pages[0])
    (folder / "tokenizer_config.json").write_bytes(settings)
    (out := folder / "out").mkdir()

    def read(case: Case) -> None:
        from tasks import vocabulary

        (folder / of).write_bytes(case.data)
        adopted = adopt(find(str(folder)))
        made = vocabulary._Made(adopted.tokenizer, adopted.special_ids, 3, adopted.lossless("NFC"), {}, {})
        vocabulary._write(Workspace(out, -1), made)
        encode(adopted.tokenizer, ["A text, ▁with é and 123.", ""])

    return Parser(pages if of == "tokenizer.json" else [settings], read, "json")


PARSERS: dict[str, Build] = {
    "recipe": recipe,
    "set": words,
    "schedules": schedules,
    "source": surveyed,
    "text": partial(
        text, kind="text", name="a.txt", examples=lambda: ["\n\n".join(TEXTS).encode(), b"\xef\xbb\xbfa\r\nb\rc"]
    ),
    "text-utf16": partial(
        text, kind="text", name="a.txt", encoding="utf-16", examples=lambda: ["\n\n".join(TEXTS).encode("utf-16")]
    ),
    "html": partial(text, kind="html", name="a.html", examples=lambda: [PAGE]),
    "records": partial(text, kind="records", name="a.jsonl", examples=lambda: [JSONL]),
    "records-path": partial(text, kind="records", name="a.jsonl", text_key="n.a.0", examples=lambda: [JSONL]),
    "csv": partial(text, kind="csv", name="a.csv", examples=lambda: [CSV, b'text;b\n"a;\n""b""";c\n']),
    "parquet": partial(
        text,
        kind="parquet",
        name="a.parquet",
        examples=lambda: [columns("parquet"), columns("parquet", compression="zstd", use_dictionary=False)],
    ),
    "parquet-struct": partial(
        text,
        kind="parquet",
        name="a.parquet",
        text_key="meta.text",
        examples=lambda: [columns("parquet", data_page_version="2.0")],
    ),
    "arrow-file": partial(text, kind="arrow", name="a.arrow", examples=lambda: [columns("file")]),
    "arrow-stream": partial(
        text, kind="arrow", name="a.arrow", text_key="meta.text", examples=lambda: [columns("stream")]
    ),
    "gzip": partial(text, kind="records", name="a.jsonl.gz", packed=True, examples=lambda: [gzip.compress(JSONL)]),
    "zstd": partial(text, kind="records", name="a.jsonl.zst", packed=True, examples=lambda: [zstandard(JSONL)]),
    "bz2": partial(text, kind="text", name="a.txt.bz2", packed=True, examples=lambda: [bz2.compress(JSONL)]),
    "xz": partial(text, kind="text", name="a.txt.xz", packed=True, examples=lambda: [lzma.compress(JSONL)]),
    "python": partial(text, kind="python", name="a.py", examples=lambda: [PYTHON.encode()]),
    "corpus-ids": corpus_ids,
    **{
        f"image-{name}": partial(image, name=name)
        for name in ("a.png", "a.jpg", "a.tar", "a.tar.gz", "a-idx3-ubyte", "a.parquet")
    },
    "minimal-pairs": partial(
        evaluation,
        name="a.jsonl",
        example=PAIRS,
        form="lines",
        config=lambda path: lambda: pairs_of(MinimalPairsConfig("a", (path,))),
    ),
    "minimal-pairs-text": partial(
        evaluation,
        name="a-b.txt",
        example=b"bad one\ngood one\nbad two\ngood two\n",
        form="bytes",
        config=lambda path: lambda: pairs_of(MinimalPairsConfig("a", (path,))),
    ),
    "cloze": partial(
        evaluation,
        name="a.jsonl",
        example=CLOZE,
        form="lines",
        config=lambda path: lambda: items_of(ClozeConfig("a", path)),
    ),
    "labelled-jsonl": partial(evaluation, name="a.jsonl", example=LABELLED, form="lines", config=classified),
    "labelled-csv": partial(evaluation, name="a.csv", example=CSV, form="bytes", config=classified),
    "labelled-tsv": partial(evaluation, name="a.tsv", example=TSV, form="bytes", config=classified),
    "labelled-cola": partial(
        evaluation, name="a.tsv", example=COLA, form="bytes", config=partial(classified, format="cola")
    ),
    "labelled-rte": partial(
        evaluation, name="a.xml", example=RTE, form="bytes", config=partial(classified, pair="pair")
    ),
    "treebank": partial(
        evaluation,
        name="a.conllu",
        example=TREE,
        form="bytes",
        config=lambda path: lambda: read_treebank(TaggingConfig("a", path), silent),
    ),
    "tokenizer": tokenizer,
    "tokenizer-settings": partial(tokenizer, of="tokenizer_config.json"),
}
