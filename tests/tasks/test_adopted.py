"""Existing tokenizers: raw text gets the ids it always got, and what a masked language model needs is added."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import tokenizers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tasks import adopted, tokens, words
from tasks.artifacts import Manifest, Store
from tasks.errors import DataError, UnreachableError, UsageError
from tasks.spellings import spellings
from tasks.vocabulary import VocabularyConfig, identity, vocabulary
from tests.tasks.other_tokenizers import LAYOUTS, TEXTS, saved, with_template
from tests.tasks.test_vocabulary import make_corpus

EXPECTED = {
    "bert": ([], "[MASK]", "wordpiece"),
    "roberta": ([], "<mask>", "bpe"),
    "gpt2": (["[PAD]", "[CLS]", "[SEP]", "[MASK]"], "[MASK]", "bpe"),
    "gpt2_with_prefix": (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[MASK]", "bpe"),
    "cl100k": (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[MASK]", "bpe"),
    "albert": ([], "[MASK]", "unigram"),
    "llama": (["[PAD]", "[MASK]"], "[MASK]", "bpe"),
}
"""Layout -> the special tokens that it lacks, the name of [MASK], the model."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("adopted")


@pytest.fixture(scope="module")
def made(folder) -> dict[str, Manifest]:
    store = Store(folder / "store")
    corpus = make_corpus(store, TEXTS)
    return {
        layout: vocabulary(VocabularyConfig(tokenizer=str(saved(folder / layout, layout))), corpus, store)[0]
        for layout in LAYOUTS
    }


def opened(manifest: Manifest) -> Tokenizer:
    return tokens.open_for_text(manifest.path("tokenizer.json"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_missing_is_added_and_v_is_a_multiple_of_64(made, folder, layout):
    facts = made[layout].facts
    missing, mask, model = EXPECTED[layout]
    assert facts["added"] == missing and facts["special_names"]["mask"] == mask and facts["model"] == model
    original = Tokenizer.from_file(str(folder / layout / "tokenizer.json"))
    assert facts["tokens"] == original.get_vocab_size() + len(missing) and facts["source"] == "adopted"
    assert facts["size"] % 64 == 0 and facts["size"] == facts["tokens"] + facts["reserved"]
    tokenizer = opened(made[layout])
    assert tokenizer.get_vocab_size() == facts["size"] and len(set(facts["special_ids"].values())) == 5
    specials = set(facts["special_ids"].values())
    ordinary = {number for first, end in facts["ordinary"] for number in range(first, end)}
    assert not ordinary & specials and max(ordinary) < facts["tokens"]
    assert not [number for number in ordinary if "unused" in tokenizer.id_to_token(number)]
    for name in ("token_bytes.npy", "words.npy"):
        table = np.load(made[layout].path(name), allow_pickle=False)
        assert table.shape == (facts["size"],)
    assert {"card.json", "card.html", "tokenizer_config.json"} <= set(made[layout].files)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(
    text=st.text(max_size=40)
    | st.lists(st.sampled_from([" ", "The value", "[MASK]", "<s>", "\n", "é", "12."])).map("".join)
)
def test_raw_text_gets_the_ids_that_it_always_got(made, folder, layout, text):
    original = Tokenizer.from_file(str(folder / layout / "tokenizer.json"))
    original.encode_special_tokens = True
    original.no_truncation()
    original.no_padding()
    theirs = original.encode(text, add_special_tokens=False).ids
    assert list(tokens.encode(opened(made[layout]), [text])[0]) == theirs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prompt_is_cls_text_sep_and_its_mask_is_one_token(made, layout):
    ids = made[layout].facts["special_ids"]
    mask = made[layout].facts["special_names"]["mask"]
    tokenizer = tokens.open_for_prompts(made[layout].path("tokenizer.json"))
    assert tokenizer.encode("").ids == [ids["cls"], ids["sep"]]
    found = tokenizer.encode(f"The value of {mask} is " + "x " * 60)
    assert found.ids[0] == ids["cls"] and found.ids[-1] == ids["sep"] and found.ids.count(ids["mask"]) == 1
    assert len(found.ids) > 60, "truncation is off"
    whole = tokenizer.encode("the value of the name").ids
    if layout != "llama":  # its normalizer puts a space before what follows a special token: that is what it is
        typed = tokenizer.encode(f"the value of {mask} name").ids
        assert len(typed) == len(whole) and typed[:-3] == whole[:-3] and typed[-2:] == whole[-2:]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_reads_it(made, layout):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(made[layout].folder)
    ours = tokens.open_for_prompts(made[layout].path("tokenizer.json"))
    facts = made[layout].facts
    text = f"The value of {facts['special_names']['mask']} is (not None)."
    assert theirs(text)["input_ids"] == ours.encode(text).ids
    assert len(theirs) == facts["size"]
    for role, number in facts["special_ids"].items():
        assert getattr(theirs, f"{role}_token_id") == number


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lossless_means_that_the_bytes_add_up(made, layout):
    lossless = made[layout].facts["lossless"]
    assert lossless == (layout in ("roberta", "gpt2", "cl100k"))
    if lossless:
        sizes = np.load(made[layout].path("token_bytes.npy"), allow_pickle=False)
        for text in TEXTS[:5]:
            ids, _ = tokens.encode(opened(made[layout]), [text])
            assert sizes[ids].sum() == len(text.encode())


def test_words_of_an_adopted_tokenizer_begin_at_its_spaces(made):
    for layout in ("roberta", "albert", "llama", "bert"):
        tokenizer = opened(made[layout])
        table = np.load(made[layout].path("words.npy"), allow_pickle=False)
        ids = tokens.encode(tokenizer, ["the value of unbelievable names"])[0]
        begins = words.word_begins(table, ids)
        assert begins.sum() == 5, layout


def test_the_key_is_of_the_bytes_not_of_the_path(folder, tmp_path):
    first, second = saved(tmp_path / "a", "gpt2"), saved(tmp_path / "b", "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (second / name).write_bytes((first / name).read_bytes())
    one, other = (identity(VocabularyConfig(tokenizer=str(path), size=900), "c") for path in (first, second))
    assert one == other == identity(VocabularyConfig(tokenizer=str(first), size=5000, model="unigram"), "c")
    assert one != identity(VocabularyConfig(tokenizer=str(first), reserved=3), "c")
    alone = identity(VocabularyConfig(tokenizer=str(first / "tokenizer.json")), "c")
    assert alone != one, "what is special is said by the other files, too"
    (second / "tokenizer_config.json").write_text("{}")
    assert identity(VocabularyConfig(tokenizer=str(second)), "c") != one


def test_equal_bytes_from_two_places_are_one_vocabulary(tmp_path):
    made = []
    for name in ("a", "b"):
        saved(tmp_path / name, "gpt2")
        (tmp_path / name / "tokenizer.json").write_bytes((tmp_path / "a" / "tokenizer.json").read_bytes())
        store = Store(tmp_path / f"store_{name}")
        config = VocabularyConfig(tokenizer=str(tmp_path / name), reserved=100)
        made.append(vocabulary(config, make_corpus(store, TEXTS[:2]), store)[0])
    assert made[0].digest == made[1].digest and made[0].facts["reserved"] >= 100


def test_odd_files_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere is no tokenizer\.json"):
        adopted.find(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="no folder with one"):
        adopted.find(str(tmp_path))
    path = tmp_path / "tokenizer.json"
    for page in ("{}", "[1]", "word\nanother\n", '{"model": 3}'):  # the third is a vocab.txt
        path.write_text(page)
        with pytest.raises(UsageError, match=r"is not the tokenizer\.json of a fast tokenizer; save one with"):
            adopted.find(str(path))
    path.write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer"):
        adopted.adopt(adopted.find(str(path)))
    folder = saved(tmp_path / "sparse", "gpt2")
    page = json.loads((folder / "tokenizer.json").read_text())
    page["model"]["vocab"]["far"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(page))
    with pytest.raises(DataError, match="ids up to 5000"):
        adopted.adopt(adopted.find(str(folder)))
    folder = saved(tmp_path / "settings", "gpt2")
    (folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(DataError, match=r"tokenizer_config\.json of settings is not JSON"):
        adopted.adopt(adopted.find(str(folder)))
    with pytest.raises(UsageError, match=r"vocabulary\.lowercase cannot be changed in an existing tokenizer"):
        VocabularyConfig(tokenizer=str(folder), lowercase=True)


class Hub:
    """What huggingface_hub does, for one model: files in a snapshot; away: the cache alone."""

    trouble: Exception = OSError("no route to the hub\nand more")

    def __init__(self, snapshot: Path, away: bool = False) -> None:
        self.snapshot, self.away, self.asked = snapshot, away, []

    def model_info(self, name, revision=None, timeout=None):
        if self.away:
            raise self.trouble
        return SimpleNamespace(sha=self.snapshot.name)

    def download(self, name, file, revision=None, local_files_only=False):
        self.asked.append((file, revision))
        assert local_files_only == self.away
        if not (self.snapshot / file).exists():
            raise (LocalEntryNotFoundError if self.away else EntryNotFoundError)(f"no {file}")
        return str(self.snapshot / file)

    def install(self, monkeypatch) -> None:
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)


@pytest.mark.parametrize("away", [False, True])
def test_the_bytes_of_the_hub_at_a_resolved_revision_are_the_key(monkeypatch, tmp_path, capsys, away):
    commit = "c" * 40
    hub = Hub(saved(tmp_path / "snapshots" / commit, "gpt2"), away)
    hub.install(monkeypatch)
    found = adopted.find("hf:some/name@v1")
    assert found.name == f"hf:some/name@{commit}" and found.digest == adopted.find(str(hub.snapshot)).digest
    assert hub.asked[0] == ("tokenizer.json", "v1" if away else commit)
    assert {revision for _, revision in hub.asked[1:]} == {commit}
    assert ("taken from the cache" in capsys.readouterr().err) == away


def test_a_hub_out_of_reach_is_said(monkeypatch, tmp_path):
    Hub(tmp_path, away=True).install(monkeypatch)
    with pytest.raises(UsageError, match=r"hf:some/name@main is no folder here.*\(no route to the hub\)"):
        adopted.find("hf:some/name@main")
    monkeypatch.setattr(Hub, "trouble", TimeoutError("took too long"))
    with pytest.raises(UnreachableError, match="took too long") as error:
        adopted.find("hf:some/name@main")
    assert error.value.exit_code == 69
    monkeypatch.setattr(Hub, "trouble", OfflineModeIsEnabled("by wish"))
    with pytest.raises(UsageError, match="by wish"):
        adopted.find("hf:some/name@main")
    Hub(tmp_path).install(monkeypatch)
    with pytest.raises(UsageError, match=r"gives no tokenizer\.json of it \(no tokenizer\.json\)"):
        adopted.find("hf:some/name")


def test_reserved_ids_of_bert_are_no_ordinary_ids(made):
    of = spellings(opened(made["bert"]))
    tokenizer = opened(made["bert"])
    assert of[tokenizer.token_to_id("[unused3]")].role == "special"
    assert tokenizer.token_to_id("[unused9]") >= made["bert"].facts["tokens"], "the next free name"


def test_a_tokenizer_over_which_the_library_panics_is_refused(tmp_path):
    tokenizer = Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    page = json.loads(tokenizer.to_str())
    page["model"]["continuing_subword_prefix"] = "longer than its tokens"
    (tmp_path / "tokenizer.json").write_text(json.dumps(page))
    with pytest.raises(DataError, match="is not a tokenizer"):
        adopted.adopt(adopted.find(str(tmp_path)))
    with pytest.raises(DataError, match="is not a tokenizer"):
        tokens.open_for_text(tmp_path / "tokenizer.json")


def test_a_tokenizer_that_cannot_encode_what_it_does_not_know_is_refused(tmp_path):
    tokenizer = Tokenizer(tokenizers.models.WordLevel({"a": 0}, "[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"cannot encode unknown characters|is not a tokenizer"):
        adopted.adopt(adopted.find(str(tmp_path)))


def test_an_id_far_from_the_others_is_refused_before_it_takes_memory(tmp_path):
    tokenizer = Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]"))
    page = json.loads(tokenizer.to_str())
    page["model"]["vocab"]["a"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(page))
    code = (
        "import resource, sys; from tasks import adopted; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); "
        "adopted.adopt(adopted.find(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "but ids up to 4294967295 (none has 0" in done.stderr, done.stderr[-500:]


@pytest.mark.parametrize(
    ("single", "pair", "texts"),
    [
        ("unknown $A", "$A $B:1", "a text"),  # a special token that it does not define
        ("$A $B", "$A $B:1", "a text"),  # a second text where there is one
        ("$A", "$A unknown $B:1", "two texts"),
    ],
)
def test_a_tokenizer_whose_template_does_not_work_is_refused(tmp_path, single, pair, texts):
    with_template(saved(tmp_path, "bert"), single, pair)
    with pytest.raises(DataError, match=f"breaks when it encodes {texts} ") as found:
        adopted.adopt(adopted.find(str(tmp_path)))
    assert "\n" not in str(found.value)
