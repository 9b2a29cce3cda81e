"""What is wrong with a recipe is said with its file, its key and our words. pytest tests/flows/test_recipe_words.py"""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import recipes
from tasks.errors import UsageError
from tasks.sources import Source
from tests.flows.every_setting import SETTINGS


@given(st.sampled_from(SETTINGS), st.data())
def test_a_misspelt_key_is_refused_and_the_right_one_is_named(key: tuple[str, ...], data: st.DataObject) -> None:
    name = key[-1]
    at = data.draw(st.integers(0, len(name)))
    wrong = name[:at] + data.draw(st.sampled_from("abcxyz_")) + name[at:]
    if (*key[:-1], wrong) in set(recipes.keys()):
        return
    with pytest.raises(UsageError) as caught:
        recipes.load("quickstart", overrides=[f"{'.'.join((*key[:-1], wrong))}=1"])
    message = str(caught.value)
    assert wrong in message and "did you mean" in message and "--set" in message
    assert caught.value.exit_code == 2


def test_a_setting_in_the_wrong_place_is_named_in_its_right_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 10\n")
    with pytest.raises(UsageError, match=r"mine.yaml: unknown key steps; did you mean pretrain.steps\?"):
        recipes.load(str(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pretrain: {steps: many}", "pretrain.steps: a whole number is expected, not 'many'"),
        ("pretrain: {steps: true}", "pretrain.steps: a number or a text is expected, not true"),
        ("pretrain: {steps: yes}", "pretrain.steps: a whole number .*'yes'"),
        ("pretrain: {minutes: nan}", "pretrain.minutes is nan; use 0 or more"),
        ("pretrain: 3", "pretrain: this is a group of settings.*not 3"),
        ("pretrain: [1, 2]", "pretrain: this is a group of settings"),
        ("evaluate: {sentences: text}", "evaluate.sentences: .*not 'text'"),
        ("pretrain: {steps: -1}", "pretrain"),
        ("shards: {rate: 1.5}", "rate"),
        (
            "corpus: {limits: {characters: 1}}",
            r"unknown key corpus.limits.characters; did you mean corpus.limits.record_",
        ),
        ("pretrain: {batch_warmup: {begin: 64}}", r"unknown key pretrain.batch_warmup.begin; known here: start, share"),
        ("pretrain: {rows_per_step: 64}", r"unknown key pretrain.rows_per_step; it is pretrain.batch_tokens"),
        ("a: [", "line 1: this is not YAML"),
        ("- a", "a recipe is a mapping"),
        ("pretrain: {learning_rate: .nan}", "pretrain.learning_rate: a finite number is expected, not .nan"),
        ("pretrain: {steps: 2026-11-24}", "pretrain.steps: .*, not a date; quote"),
        ("!!python/object/apply:os.system ['true']", "mine.yaml"),
    ],
)
def test_a_bad_value_is_named_with_its_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        recipes.load(str(path), sources=[str(tmp_path)])
    assert str(path) in str(caught.value)


WRONG = ["null", "two", "-2.5", "true", "[[1], null]", "{a: 1}", "[{a: 1}]", ".inf", "2026-11-24", "''"]


@pytest.mark.parametrize("value", WRONG)
def test_a_value_of_the_wrong_kind_is_refused_in_our_words(value: str) -> None:
    for key in (("pretrain",), ("corpus",), ("pretrain", "lengths"), *SETTINGS):
        override = f"{'.'.join(key)}={value}"
        try:
            recipes.load("quickstart", overrides=[override])
        except UsageError as error:
            told = str(error).removeprefix(f"--set {override}: ")
            assert len(told) < len(str(error)) and key[-1] in told, error
            for words in ("Input should", "unable to", " valid ", "None", "True", "JSON", "Value error"):
                assert words not in told, error


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pretrain.layers=two", "a whole number is expected, not 'two'"),
        ("pretrain.layers=2.5", "a whole number is expected, not 2.5"),
        ("pretrain.layers=", "a whole number is expected, not null"),
        ("pretrain.lengths=5", "this is a group of settings, so keys belong below it, not 5"),
        ("pretrain.lengths.at=[[1]]", "a text or a number is expected, not [1]"),
        ("pretrain.isolate=maybe", "true or false is expected, not 'maybe'"),
        ("pretrain.learning_rate=[1]", "a number is expected, not [1]"),
        ("evaluate.rates=0.15", "a list is expected, such as [0.15], not 0.15"),
        ("evaluate.rates=null", "a list is expected, not null"),
        ("runner=null", "use 'processes', 'dask' or 'ray', not null"),
    ],
)
def test_a_value_of_the_wrong_kind_says_what_is_expected_and_what_was_given(override: str, words: str) -> None:
    key = override.partition("=")[0]
    entry = ".0" if key.endswith("lengths.at") else ""
    with pytest.raises(UsageError) as caught:
        recipes.load("quickstart", overrides=[override])
    assert str(caught.value) == f"--set {override}: {key}{entry}: {words}."


def test_a_misspelt_key_of_a_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("corpus: {sources: [{uri: a, urn: b}]}")
    with pytest.raises(UsageError, match=r"unknown key corpus.sources.0.urn; did you mean corpus.sources.0.uri\?"):
        recipes.load(str(tmp_path / "mine.yaml"))


def test_a_key_that_stands_twice_an_empty_source_and_a_bad_override_are_named(tmp_path: Path) -> None:
    twice = tmp_path / "twice.yaml"
    twice.write_text("corpus: {sources: [x.txt]}\nshards: {rate: 0.3}\nshards: {length: 32}\n")
    with pytest.raises(UsageError, match=r"twice.yaml, line 3: .*'shards' stands twice"):
        recipes.load(str(twice))
    with pytest.raises(UsageError, match="source is empty"):
        recipes.load("tiny", [""])
    with pytest.raises(UsageError, match=r"^--set shards.rate=2: shards.rate: The mask rate '2'"):
        recipes.load("tiny", [], ["shards.rate=2"])


@pytest.mark.parametrize("override", ["corpus.sources.text_key=body", "corpus.sources.0.text_key=body"])
def test_a_key_of_a_source_is_set_with_its_whole_list(override: str, tmp_path: Path) -> None:
    whole = "corpus.sources=[{uri: FILE, text_key: body}]"
    with pytest.raises(UsageError) as caught:
        recipes.load("tiny", sources=[str(tmp_path)], overrides=[override])
    assert f"corpus.sources is a list; write it whole: --set '{whole}'." in str(caught.value)
    with pytest.raises(UsageError, match=r"did you mean corpus.sources.text_key\? Write --set 'corpus.sources=\[{uri"):
        recipes.load("tiny", overrides=["text_key=body"])
    (source,) = recipes.load("tiny", overrides=[whole.replace("FILE", str(tmp_path))]).corpus.sources
    assert source == Source(str(tmp_path), text_key="body")
    with pytest.raises(UsageError, match=r"evaluate.rates is a list; write it whole: --set 'evaluate.rates=\[…\]'"):
        recipes.load("tiny", overrides=["evaluate.rates.0=1"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("corpus.cleaning.mojibak=false", r"did you mean corpus.cleaning.mojibake\?"),
        ("corpus.near_duplicates.similarty=0.9", r"did you mean corpus.near_duplicates.similarity\?"),
        ("corpus.mojibake=false", r"did you mean corpus.cleaning.mojibake\?"),
    ],
)
def test_a_misspelt_key_of_an_inner_group_is_named(override: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        recipes.load("tiny", overrides=[override])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("corpus.cleaning.languages=en", r"corpus.cleaning.languages: a list is expected, such as \[en\], not 'en'"),
        ("corpus.cleaning.unicode=false", r"true and false are no text; quote them"),
        ("corpus.near_duplicates=false", r"this is a group of settings"),
        ("corpus.near_duplicates.bands=100000", r"corpus.near_duplicates.bands is 100000; it must be from 1 to 256"),
    ],
)
def test_new_settings_say_what_they_want(override: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        recipes.load("tiny", overrides=[override])


def test_an_error_names_the_options_that_it_is_about_and_no_others() -> None:
    given = ["pretrain.steps=30", "pretrain.schedule=cosin"]
    with pytest.raises(UsageError, match=r"^--set pretrain.schedule=cosin: pretrain.schedule is 'cosin'; use"):
        recipes.load("tiny", ["x"], given)


def test_a_source_whose_name_is_not_utf8_is_one_sentence(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    Path(path).write_text("text")
    with pytest.raises(UsageError, match="has a name that is not UTF-8; rename that file") as caught:
        recipes.load("tiny", [path])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pretrain.lengths={lengths: [16]}", r"pretrain.lengths.at has 0 shares for 1 lengths"),
        (
            "pretrain.lengths={lengths: [16, 32], at: [0.5, 0.8]}",
            r"pretrain.lengths.lengths is \[16, 32\], and shards.le",
        ),
        (
            "pretrain.lengths={lengths: [24, 16], at: [0.5, 0.8]}",
            r"pretrain.lengths.lengths is \[24, 16\]; each must be",
        ),
        (
            "pretrain.lengths={lengths: [20], at: [0.5]}",
            r"pretrain.lengths.lengths: 20 is no length of rows; use multip",
        ),
        ("pretrain.lengths={lengths: [8], at: [50]}", r"pretrain.lengths.at: '50' is not a number between 0 and 1"),
        ("pretrain.lengths={length: [8], at: [0.5]}", r"did you mean pretrain.lengths.lengths\?"),
    ],
)
def test_lengths_that_cannot_be_are_refused_by_their_key(override: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        recipes.load("tiny", overrides=[override])


def test_rates_are_checked_against_every_length() -> None:
    lengths = "pretrain.lengths={lengths: [8, 16], at: [0.3, 0.6]}"
    with pytest.raises(UsageError, match=r"pretrain.lengths.lengths: shards.length is 8; use at least 9"):
        recipes.load("tiny", overrides=[lengths, "shards.rate=0.15"])
    with pytest.raises(UsageError, match=r"pretrain.mask_rates.rates: 0.1 hides no token of a row of 8"):
        recipes.load("tiny", overrides=[lengths, "pretrain.mask_rates.rates=[0.1]"])


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("a: &a [*a]", "stands inside of what it stands for"),
        (
            "a: &a0 [x, x]\n" + "".join(f"b{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
            "more than 100,000 values",
        ),
        ("? {a: b}\n: c", "unhashable"),
        ("a: 2001-99-99", "'2001-99-99' cannot be read"),
        ("a: !!int abc", "'abc' cannot be read"),
        ("a: !!timestamp y", "'y' cannot be read"),
        ("!!map [a]", "line 1: this is not YAML"),
        ("[" * 2000, "nested too deeply"),
    ],
)
def test_what_yaml_can_do_to_a_reader_is_refused_in_words(tmp_path, page, says):
    (tmp_path / "a.yaml").write_text(page)
    with pytest.raises(UsageError, match=re.escape(str(tmp_path / "a.yaml"))) as caught:
        recipes.load(str(tmp_path / "a.yaml"))
    assert says in str(caught.value)
