"""A recipe: every setting can be set, and what is left out has its default. pytest tests/flows/test_recipes.py"""

import dataclasses
import os
import shlex
from pathlib import Path

import pytest
import yaml

from flows import recipes, sweep
from tasks.corpus import CorpusConfig
from tasks.errors import UsageError
from tasks.sizes import dimensions
from tasks.sources import Source
from tests.flows.every_setting import SETTINGS

ALONE = [key for key in SETTINGS if key != ("pretrain", "size")]  # which takes the dimensions along


def value_of(recipe: recipes.Recipe, key: tuple[str, ...]) -> object:
    value = recipes._at(recipe, key)
    return list(value) if isinstance(value, tuple) else value


def plain(value: object) -> object:
    """A setting as YAML holds it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: plain(inner) for key, inner in dataclasses.asdict(value).items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_that_comes_along_is_valid(name: str) -> None:
    assert recipes.load(name).name == name


def test_every_setting_of_every_stage_can_stand_in_a_file(tmp_path: Path) -> None:
    recipe = recipes.load("quickstart")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(plain(recipe)))
    assert recipes.load(str(path)) == recipe


@pytest.mark.parametrize("key", ALONE, ids=".".join)
def test_every_setting_can_be_set_on_the_command_line(key: tuple[str, ...]) -> None:
    value = value_of(recipes.load("quickstart"), key)
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    override = f"{'.'.join(key)}={text}"
    assert recipes.load("quickstart", overrides=[override]) == recipes.load("quickstart")


def test_numbers_become_the_decimals_that_the_sampler_keeps_exact(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("shards: {rate: 0.29}\nevaluate: {rates: [0.15, 0.5]}\npretrain: {learning_rate: 1e-3}")
    recipe = recipes.load(str(path), sources=[str(tmp_path)])
    assert (recipe.shards.rate, recipe.evaluate.rates) == ("0.29", ("0.15", "0.5"))
    assert recipe.pretrain.learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as a text


def test_only_the_text_has_no_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("")
    with pytest.raises(UsageError, match=r"mine.yaml: the setting corpus is missing"):
        recipes.load(str(path))
    recipe = recipes.load(str(path), sources=[str(tmp_path)])
    assert recipe == recipes.Recipe("mine", CorpusConfig(sources=(Source(str(tmp_path)),)))


def test_a_relative_source_starts_at_the_recipe_or_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = "[texts, {uri: more, text_key: body}, installed-docs, hf:x/y]"
    (tmp_path / "mine.yaml").write_text(f"corpus: {{sources: {sources}}}")
    uris = [source.uri for source in recipes.load(str(tmp_path / "mine.yaml")).corpus.sources]
    assert uris == [f"{tmp_path}/texts", f"{tmp_path}/more", "installed-docs", "hf:x/y"]
    monkeypatch.chdir("/")
    assert recipes.load("tiny", sources=["texts"]).corpus.sources[0].uri == "/texts"


def test_a_url_stays_as_it_is_and_file_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ["s3://bucket/key*.txt", "https://host/a.jsonl?b=c", "hf://datasets/x/y", "memory://a", "zip://*::s3://b/c"]
    (tmp_path / "mine.yaml").write_text("corpus: {sources: [{uri: 'file:///a/b', text_key: body}, 'file://c']}")
    sources = recipes.load(str(tmp_path / "mine.yaml")).corpus.sources
    assert [source.uri for source in sources] == ["/a/b", f"{tmp_path}/c"]
    monkeypatch.chdir(tmp_path)
    assert [source.uri for source in recipes.load("tiny", sources=urls).corpus.sources] == urls
    words = shlex.split(recipes.command("tiny", [*urls, "file:///a/b", "file://c"]))
    urls[1] = "https://host/a.jsonl?…"  # what may be a signature is not written down
    assert words[4::2] == [*urls, "/a/b", f"{tmp_path}/c"]


def test_evaluation_files_are_written_like_sources(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("corpus: {sources: [a], evaluation_files: [b, {uri: 's3://c/d', text_key: x}]}")
    corpus = recipes.load(str(tmp_path / "mine.yaml")).corpus
    assert corpus.evaluation_files == (Source(f"{tmp_path}/b"), Source("s3://c/d", text_key="x"))


def test_only_a_recipe_with_a_source_on_the_hub_may_go_there(tmp_path: Path) -> None:
    assert recipes.load("tiny", sources=["hf:owner/name"]).reaches_hub
    assert recipes.load("tiny", sources=["hf://datasets/owner/name/a.txt"]).reaches_hub
    assert recipes.load("tiny", overrides=["corpus.evaluation_files=['hf:owner/name']"]).reaches_hub
    assert not recipes.load("tiny", sources=[f"hf:{tmp_path}"]).reaches_hub
    assert not recipes.load("tiny").reaches_hub


def test_an_unknown_recipe_names_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"Did you mean quickstart\? Recipes here: .*quickstart, tiny"):
        recipes.load("quikstart")


def test_recipes_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("pretrain: {steps: 7}")
    monkeypatch.chdir(tmp_path)
    assert recipes.load("quickstart").name == "quickstart"
    assert recipes.load("mine.yaml", sources=["."]).pretrain.steps == 7


def test_the_command_survives_a_shell_and_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my texts").mkdir()
    (tmp_path / "mine.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(recipes.command("mine.yaml", ["my texts", "hf:name"], ["evaluate.rates=[0.1, 0.2]"], "shards"))
    assert words[:3] == ["maskmill", "run", f"{tmp_path}{os.sep}mine.yaml"]
    assert words[3:] == [
        "--source", f"{tmp_path}{os.sep}my texts", "--source", "hf:name",
        "--set", "evaluate.rates=[0.1, 0.2]", "--from", "shards",
    ]  # fmt: skip


PATHS = [
    "vocabulary.tokenizer=tok",
    "vocabulary.tokenizer=hf:tok",
    "vocabulary.tokenizer=hf:some/name",
    "corpus.sources=[tok, 'a: b', hf:name]",
    "corpus={sources: [{uri: ../tok}]}",
    "pretrain.fork=runs/tok",
    "evaluate.minimal_pairs=[{name: a, files: tok/a.jsonl}]",
]


@pytest.mark.parametrize("override", PATHS)
def test_the_command_has_whole_paths_in_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    (tmp_path / "here" / "tok").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    expected = recipes.load("tiny", overrides=[override])
    words = shlex.split(recipes.command("tiny", overrides=[override, "name=tok"]))
    monkeypatch.chdir("/")
    assert recipes.load("tiny", overrides=[words[-3]]) == expected
    assert words[-1] == "name=tok" and (words[-3] == override) == ("some/name" in override)


def test_the_command_of_a_sweep_has_whole_paths_in_each_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["vocabulary.tokenizer=a,'b, c'", "shards.rate=15%,30%"]
    words = shlex.split(recipes.command("tiny", overrides=given, verb="sweep"))
    here = f"{tmp_path}{os.sep}"
    assert words[-3] == f'vocabulary.tokenizer="{here}a","{here}b, c"' and words[-1] == given[1]
    assert sweep.points([words[-3]]) == [[f'vocabulary.tokenizer="{here}{name}"'] for name in ("a", "b, c")]


def test_the_runner_is_one_of_three(tmp_path: Path) -> None:
    assert recipes.load("tiny").runner == "processes"
    assert recipes.load("tiny", overrides=["runner=ray"]).runner == "ray"
    path = tmp_path / "mine.yaml"
    path.write_text("runner: dusk")
    with pytest.raises(UsageError, match=r"mine.yaml: runner: .*'processes', 'dask' or 'ray', not 'dusk'"):
        recipes.load(str(path), sources=["x"])
    path.write_text("corpus: {runner: dask}")
    with pytest.raises(UsageError, match=r"unknown key corpus.runner; did you mean runner\?"):
        recipes.load(str(path), sources=["x"])


def test_inner_groups_are_set_key_by_key() -> None:
    given = ["corpus.cleaning.mojibake=false", "corpus.near_duplicates.similarity=0.9"]
    corpus = recipes.load("tiny", overrides=given).corpus
    assert (corpus.cleaning.mojibake, corpus.near_duplicates.similarity) == (False, "0.9")
    assert dataclasses.replace(corpus.cleaning, mojibake=True) == recipes.load("tiny").corpus.cleaning


def test_words_that_yaml_once_took_for_truth_values_or_minutes_are_words(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    nodes = "nodes: 2:4, rendezvous: 'host:29500'"
    path.write_text(f"pretrain: {{compile: off, {nodes}}}\ncorpus: {{cleaning: {{languages: [no]}}}}")
    recipe = recipes.load(str(path), ["x"], ["corpus.cleaning.unicode=off", "corpus.cleaning.mojibake=no"])
    assert (recipe.pretrain.compile, recipe.pretrain.nodes) == ("off", "2:4")
    cleaning = recipe.corpus.cleaning
    assert (cleaning.languages, cleaning.unicode, cleaning.mojibake) == (("no",), "off", False)


def test_a_size_on_the_command_line_is_not_undone_by_the_file_s_dimensions() -> None:
    given = ["pretrain.size=small", "pretrain.heads=8"]
    pretrain = recipes.load("quickstart", overrides=given).pretrain
    assert dimensions(pretrain.size, dataclasses.asdict(pretrain)) == dimensions("small", {"heads": 8})


def test_a_tokenizer_is_found_from_the_recipe_s_folder_and_the_hub_is_reached_for_its_name(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    path = tmp_path / "mine.yaml"
    for tokenizer, expected, hub in (
        ("bert", str(tmp_path / "bert"), False),
        ("hf:bert", f"hf:{tmp_path / 'bert'}", False),
        ("hf:google-bert/bert-base-uncased@main", "hf:google-bert/bert-base-uncased@main", True),
    ):
        path.write_text(f"corpus: {{sources: [README.md]}}\nvocabulary: {{tokenizer: '{tokenizer}'}}\n")
        recipe = recipes.load(str(path))
        assert recipe.vocabulary.tokenizer == expected and recipe.reaches_hub == hub


def test_shorter_shards_are_those_of_the_recipe_but_for_the_length() -> None:
    recipe = recipes.load("tiny", overrides=["pretrain.lengths={lengths: [16, 24], at: [50%, 3/4]}"])
    assert recipe.shorter == tuple(dataclasses.replace(recipe.shards, length=length) for length in (16, 24))
    assert recipes.load("tiny").shorter == ()


def test_a_fork_is_a_key_or_a_folder_from_where_the_recipe_lies(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for fork, expected in (
        ("1f2e", "1f2e"),
        ("12345678", "12345678"),
        ("1f2e@700", "1f2e@700"),
        ("old/1f2e@700", f"{tmp_path}/old/1f2e@700"),
        ("./1f2e", f"{tmp_path}/1f2e"),
        ("/old/1f2e", "/old/1f2e"),
    ):
        path.write_text(f"corpus: {{sources: [x]}}\npretrain: {{fork: {fork}}}\n")
        assert recipes.load(str(path)).pretrain.fork == expected
    with pytest.raises(UsageError, match=r"pretrain.fork goes on .*: leave out pretrain.lengths, its rows have"):
        recipes.load("tiny", overrides=["pretrain.fork=1f2e", "pretrain.lengths={lengths: [16], at: [0.5]}"])


def test_a_remote_is_a_url_without_a_secret() -> None:
    assert recipes.load("tiny").remote == ""
    assert recipes.load("tiny", overrides=["remote=s3://bucket/folder"]).remote == "s3://bucket/folder"
    for remote in ("sftp://me:canary@host/folder", "s3://bucket/folder?X-Amz-Signature=canary", "bucket/folder"):
        with pytest.raises(UsageError, match="The remote ") as error:
            recipes.load("tiny", overrides=[f"remote={remote}"])
        assert "canary" not in str(error.value)
