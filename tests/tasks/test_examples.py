"""Files of examples: every row is an example or counted by reason, and what is held out depends on the texts alone."""

import json
import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, TypeAdapter

from tasks.errors import UsageError
from tasks.examples import (
    ClassificationConfig,
    FineTuning,
    TaggingConfig,
    drawn,
    is_held_out,
    key_of,
    paths,
    read_examples,
)
from tasks.labelled_files import Columns, Example, rows

DATA = Path("../shared/data/eval")
real = pytest.mark.skipif(not DATA.is_dir(), reason="the evaluation sets are not beside this checkout")


def good(number: int) -> list[dict[str, str]]:
    return [{"text": f"text {n}", "label": "yes" if n % 2 else "no"} for n in range(number)]


def jsonl(path: Path, entries: list) -> str:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in entries))
    return str(path)


def reasons(found) -> Counter:
    return Counter(one for _, one in found if isinstance(one, str))


# The real files


@real
def test_cola_has_its_published_size_and_six_of_train_stand_in_dev():
    config = ClassificationConfig(
        "cola",
        str(DATA / "cola/in_domain_train.tsv"),
        str(DATA / "cola/in_domain_dev.tsv"),
        format="cola",
        metric="mcc",
    )
    found = read_examples(config)
    assert found.counts == {"train": 8551 - 6, "test": 527, "train_also_in_test": 6}
    assert found.labels == ("0", "1") and not found.unseen
    numbered = ClassificationConfig("cola", config.train, config.test, text="4", label="2", metric="mcc")
    assert read_examples(numbered) == found


@real
def test_rte_has_the_pairs_of_its_files_and_two_names_of_a_class_are_one():
    for name, size in (("rte1_dev", 567), ("rte1_test", 800), ("rte2_dev", 400), ("rte2_test", 800)):
        found = list(rows(DATA / f"rte/{name}.xml", "rte", Columns()))
        assert len(found) == size and not reasons(found)
        assert {one.label for _, one in found} == {"entailment", "not_entailment"}
        assert all(len(one.texts) == 2 for _, one in found)


@real
def test_sentence_polarity_has_its_published_size():
    files = {label: str(DATA / f"sentence_polarity/rt-polarity.{label}") for label in ("pos", "neg")}
    found = read_examples(ClassificationConfig("polarity", files))  # this copy is UTF-8, unlike the authors' own
    assert found.counts["train"] + found.counts["test"] == 2 * 5331
    assert 0.18 < found.counts["test"] / (2 * 5331) < 0.22
    assert not {key_of(one.text) for one in found.train} & {key_of(one.text) for one in found.test}


def test_a_file_of_another_encoding_loses_lines_until_it_is_said(tmp_path):
    (tmp_path / "a.pos").write_bytes("one\ncaf\u00e9\ntwo\r\n\n".encode("latin-1"))
    found = list(rows(tmp_path / "a.pos", "lines", Columns(), "utf-8", "pos"))
    assert found == [(1, Example("one", "pos")), (2, "undecodable"), (3, Example("two", "pos"))]
    said = rows(tmp_path / "a.pos", "lines", Columns(), "latin-1", "pos")
    assert [one.text for _, one in said] == ["one", "caf\u00e9", "two"]


# Rows


def test_one_malformed_row_of_a_thousand_is_counted_and_the_others_are_kept(tmp_path, capsys):
    entries: list = good(1000)
    entries[500] = '{"text": "half'
    found = read_examples(ClassificationConfig("set", jsonl(tmp_path / "a.jsonl", entries)))
    assert found.counts["malformed"] == 1 and found.counts["train"] + found.counts["test"] == 999
    assert "a.jsonl: 999 of 1000 rows are used; left out 1 malformed, first in line 501" in capsys.readouterr().err


def test_what_is_wrong_with_a_row_of_json_is_told_by_reason(tmp_path):
    bad = [
        "[1]", "nonsense", "[" * 100_000, '"text"', {"text": "  ", "label": "yes"}, {"label": "yes"},
        {"text": None, "label": "yes"}, {"text": 3, "label": "yes"}, {"text": "a"}, {"text": "a", "label": ""},
        {"text": "a", "label": None}, {"text": "a", "label": ["x"]}, '{"text": "\\ud800", "label": "yes"}',
    ]  # fmt: skip
    path = jsonl(tmp_path / "a.jsonl", [*bad, "", {"text": " a\u030a ", "label": True}, {"text": "b", "label": 0}])
    with open(path, "ab") as file:
        file.write(b'{"text": "\xff", "label": "yes"}\n')
    found = list(rows(Path(path), "jsonl", Columns()))
    assert reasons(found) == {"malformed": 4, "empty_text": 4, "no_label": 4, "undecodable": 2}
    assert [one for _, one in found if isinstance(one, Example)] == [Example("\u00e5", "true"), Example("b", "0")]


def test_keys_and_columns_are_found_by_name_and_by_number(tmp_path):
    wanted = [Example("one, two", "a", "x"), Example('say "hi"', "b", "y")]
    jsonl(tmp_path / "a.jsonl", [{"in": {"first": one.text, "second": one.pair}, "gold": one.label} for one in wanted])
    (tmp_path / "a.csv").write_text('gold,first,second\r\na,"one, two",x\r\nb,"say ""hi""",y\r\n')
    (tmp_path / "a.tsv").write_text('\ufeffgold\tfirst\tsecond\na\tone, two\tx\nb\tsay "hi"\ty\n')
    (tmp_path / "b.tsv").write_text('a\tone, two\tx\nb\tsay "hi"\ty\n')
    named = Columns("first", "gold", "second")
    for name, form, columns in (
        ("a.jsonl", "jsonl", Columns("in.first", "gold", "in.second")),
        ("a.csv", "csv", named),
        ("a.tsv", "tsv", named),
        ("b.tsv", "tsv", Columns("2", "1", "3")),
    ):
        assert [one for _, one in rows(tmp_path / name, form, columns)] == wanted, name


def test_a_field_of_csv_may_hold_line_ends_and_rows_of_other_widths_are_malformed(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines\u2028",a\nshort\n\nlong,b,c\nlast,b\n')
    found = list(rows(tmp_path / "a.csv", "csv", Columns()))
    assert found == [
        (2, Example("two\nlines", "a")),
        (4, "malformed"),
        (6, "malformed"),
        (7, Example("last", "b")),
    ]


@given(st.lists(st.tuples(st.text(min_size=1), st.sampled_from("ab")), min_size=1))
@settings(max_examples=50, deadline=None)
def test_what_is_written_as_csv_and_jsonl_is_read_alike(tmp_path_factory, pairs):
    import csv

    folder = tmp_path_factory.mktemp("written")
    with open(folder / "a.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        usable = [pair for pair in pairs if not any("\ud800" <= c <= "\udfff" for c in pair[0])]
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *usable])
    jsonl(folder / "a.jsonl", [{"text": text, "label": label} for text, label in usable])
    assert [one for _, one in rows(folder / "a.csv", "csv", Columns())] == [
        one for _, one in rows(folder / "a.jsonl", "jsonl", Columns())
    ]


def test_an_entity_in_xml_is_refused_and_broken_xml_names_its_place(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]>\n<a><pair><t>&c;</t><h>x</h></pair></a>')
    with pytest.raises(UsageError, match=r"a\.xml, line 1: it declares an entity, 'b'"):
        rows(path, "rte", Columns())
    path.write_text('<a>\n<pair value="YES"><t>one</t><h>x</h>\n</a>')
    with pytest.raises(UsageError, match=r"a\.xml is no whole XML \(mismatched tag: line 3"):
        rows(path, "rte", Columns())
    path.write_text('<a><pair value="YES"><t>one\n two</t><h>x</h></pair><pair value="NO"><t>y</t></pair></a>')
    assert [one for _, one in rows(path, "rte", Columns())] == [Example("one two", "entailment", "x"), "empty_text"]


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        ("a.tsv", "txt\tlabel\nx\ty\n", {}, r"a\.tsv, line 1: no column 'text', it has txt, label; did you mean 'txt'"),
        ("a.tsv", "x\ty\n", {"text": "1", "label": "3"}, r"a\.tsv has 2 columns, numbered from 1, and none for 3"),
        ("a.csv", 'text,label\n"open,y\nz,b\n', {}, r"a\.csv, line 2: a quote is never closed"),
        ("a.jsonl", "x\ny\n", {}, r"a\.jsonl has no usable row: 2 malformed, first in line 1"),
        ("a.jsonl", "", {}, r"a\.jsonl has no usable row: it is empty"),
        ("a.foo", "x\n", {}, r"a\.foo the name does not tell the format; set `format` to one of jsonl"),
        ("a.jsonl", "x\n", {"encoding": "utf-99"}, r"cannot be read as utf-99"),
        ("a.jsonl", "x\n", {"format": "lines"}, r"in a file of lines nothing says the class"),
    ],
)
def test_a_file_that_gives_nothing_is_an_error_that_names_it(tmp_path, name, content, keys, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_examples(ClassificationConfig("set", str(tmp_path / name), **keys))


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UsageError, match=r"none\.jsonl cannot be read \(No such file"):
        read_examples(ClassificationConfig("set", str(tmp_path / "none.jsonl")))


# Train and test


def test_what_is_held_out_depends_neither_on_order_nor_on_other_examples(tmp_path):
    entries = good(300)
    whole = read_examples(ClassificationConfig("set", jsonl(tmp_path / "a.jsonl", entries)))
    random.Random(1).shuffle(entries)
    again = read_examples(ClassificationConfig("set", jsonl(tmp_path / "b.jsonl", entries[:200])))
    assert set(again.test) <= set(whole.test) and set(again.train) <= set(whole.train)
    assert 30 < len(whole.test) < 90


@given(st.text(), st.text())
def test_texts_that_differ_in_blanks_and_case_only_stand_on_one_side(text, other):
    assert key_of(text, other) == key_of(f" {text}\n", other.replace(" ", "  "))
    assert key_of("A  b\u00e9") == key_of("a be\u0301")
    assert key_of("a b", "c") != key_of("a", "b c")
    encodable = key_of(text.encode(errors="ignore").decode())
    assert is_held_out(encodable) == is_held_out(encodable)


def test_an_example_of_train_that_stands_in_test_is_left_out_of_train(tmp_path):
    train = jsonl(tmp_path / "train.jsonl", [*good(10), {"text": "TEXT  100", "label": "no"}])
    test = jsonl(
        tmp_path / "test.jsonl", [{"text": f"text {n}", "label": "yes" if n % 2 else "no"} for n in (100, 101)]
    )
    found = read_examples(ClassificationConfig("set", train, test))
    assert found.counts == {"train": 10, "test": 2, "train_also_in_test": 1}


def test_a_class_that_train_lacks_is_counted_and_one_class_alone_is_an_error(tmp_path):
    train = jsonl(tmp_path / "train.jsonl", good(10))
    test = jsonl(tmp_path / "test.jsonl", [{"text": f"t{n}", "label": label} for n, label in enumerate(["no", "new"])])
    found = read_examples(ClassificationConfig("set", train, test))
    assert found.unseen == found.counts["test_label_not_in_train"] == 1 and found.labels == ("no", "yes", "new")
    one = jsonl(tmp_path / "one.jsonl", [{"text": f"u{n}", "label": "no"} for n in range(5)])
    with pytest.raises(UsageError, match="its test set has only the class 'no'"):
        read_examples(ClassificationConfig("set", train, one))
    with pytest.raises(UsageError, match="its train set has only the class 'no'"):
        read_examples(ClassificationConfig("set", one, train))
    with pytest.raises(UsageError, match="mcc is of two classes, and it has 3"):
        read_examples(ClassificationConfig("set", train, test, metric="mcc"))


def test_a_draw_of_some_is_even_over_train_and_test_and_grows_by_adding(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", good(300))
    some, more = (
        read_examples(ClassificationConfig("set", file, max_train=number, max_test=20)) for number in (50, 100)
    )
    assert len(some.train) == 50 and len(some.test) == 20 and set(some.train) <= set(more.train)
    assert some.counts["train_not_drawn"] == more.counts["train_not_drawn"] + 50
    assert drawn([1, 2, 3], ["a", "b", "c"], 0) == [1, 2, 3]


# Recipes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "A b"}, "lower case"),
        ({"seeds": 2}, "fewer than 3"),
        ({"max_train": -1}, "at least 0"),
        ({"format": "xlsx"}, "format is 'xlsx'; use jsonl, csv"),
        ({"metric": "f1"}, "metric is 'f1'; use accuracy"),
        ({"text": "1"}, "all as names or all as numbers"),
        ({"train": ()}, "`train` names no file"),
        ({"label": ""}, "give both"),
    ],
)
def test_a_recipe_that_asks_for_nothing_sensible_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        ClassificationConfig(**{"name": "set", "train": "a.jsonl", **settings})


def test_configs_are_read_from_a_recipe_and_written_to_json():
    adapter = TypeAdapter(
        tuple[ClassificationConfig, TaggingConfig], config=ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    )
    recipe = [
        {"name": "a", "train": {"yes": "y.txt", "no": "n.txt"}, "test": ["b", "c"], "text": 4, "label": 2},
        {"name": "b", "train": "a.conllu", "fine_tuning": {"enabled": False}},
    ]
    classification, tagging = adapter.validate_json(json.dumps(recipe))
    assert paths(classification.train) == [Path("y.txt"), Path("n.txt")] and classification.text == "4"
    assert paths(classification.test) == [Path("b"), Path("c")] and paths(tagging.train) == [Path("a.conllu")]
    assert not tagging.fine_tuning.enabled
    assert json.loads(json.dumps(asdict(classification)))["train"] == {"yes": "y.txt", "no": "n.txt"}
    with pytest.raises(UsageError, match="epochs 0"):
        FineTuning(epochs=0)
