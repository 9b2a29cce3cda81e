"""What people give: recipes, schedules, evaluation sets, tokenizers of others."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from flows import deployments, recipes
from tasks.adopted import adopt, find
from tasks.artifacts import Workspace
from tasks.cloze_file import ClozeConfig, items_of
from tasks.examples import ClassificationConfig, TaggingConfig, read_examples
from tasks.pairs_file import MinimalPairsConfig, pairs_of
from tasks.tokens import encode
from tasks.treebank import read_treebank
from tests.faults.fuzz import Build, Parser
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
        "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e]\n"
        "g: [*f,*f,*f,*f,*f]\n",
    )
)
RECIPES = (
    b"corpus:\n  sources:\n    - {uri: FILE, budget_bytes: 200_000, weight: 1/2}\n  limits: {line_bytes: 1000}\n",
    b"corpus: {sources: [FILE]}\nvocabulary: {size: 384}\nshards: {length: 32, rate: 0.3}\nregister: {name: tiny}\n",
    b"corpus: {sources: [FILE]}\npretrain:\n  size: tiny  # small\n  steps: 20\n  batch_tokens: 512\n",
    b"corpus: {sources: [FILE]}\nevaluate:\n  rates: [0.1]\n  cloze: [{name: a, file: F}]\n  sentences: ['A [MASK]']\n",
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
    f"# sent {n}\n1-2\tdon't{n}\t_\t_\t_\t_\t_\t_\t_\t_\n1\tdo\t_\tAUX\t_\t_\t_\t_\t_\t_\n"
    "2\tn't\t_\tPART\t_\t_\t_\t_\t_\t_\n"
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
