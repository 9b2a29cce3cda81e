"""Minimal pairs: what is right, and what going by length alone would score. pytest tests/tasks/test_minimal_pairs.py"""

import json
import math
import random
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import minimal_pairs
from tasks.artifacts import Store
from tasks.battery import Seen, run
from tasks.bootstrap import ratio_interval, shares_interval
from tasks.errors import NumericError, UsageError
from tasks.exposure import words_in
from tasks.minimal_pairs import CHANCE, LENGTHS, SHORTER, MinimalPairsConfig, judged, read
from tasks.pairs_file import drawn, pairs_of
from tasks.pseudo_likelihood import log_probabilities
from tasks.results import MODEL, Exposure, metrics_of, outcome_of
from tasks.subjects import ours
from tests.tasks import small_model
from tests.tasks.fake_subject import Fake, likes, random_rule, uniform

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "eval"
REAL = pytest.mark.skipif(not DATA.exists(), reason="needs shared/data")


def jsonl(folder: Path, name: str, pairs, **more) -> Path:
    path = folder / name
    rows = [{"sentence_good": good, "sentence_bad": bad, **more} for good, bad in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def task(folder: Path, name: str = "set", **more):
    return read(MinimalPairsConfig(name, (str(folder / "*.jsonl"), *more.pop("files", ())), **more))


def outcome(made, *rules, seen: Seen | None = None, **labelled):
    labelled |= {(MODEL, "champion", "third")[at]: rule for at, rule in enumerate(rules)}
    scores = {label: made.score(Fake(rule), lambda done: None) for label, rule in labelled.items()}
    return made.outcome(scores, made.baselines(), seen or Seen())


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good sentence shorter in two pairs, equal in one, longer in one; two paradigms of one phenomenon."""
    jsonl(tmp_path, "one.jsonl", [("a b", "a b c"), ("d e", "d e e f")], UID="first", linguistics_term="order")
    jsonl(tmp_path, "two.jsonl", [("g hh", "g iii"), ("a b c d", "a b")], UID="second", linguistics_term="order")
    return tmp_path


def test_uniform_logits_are_right_exactly_where_the_good_sentence_has_fewer_tokens(mixed: Path) -> None:
    found = outcome(task(mixed), uniform)
    table = {one.title: one for one in found.tables}["By number of tokens"]
    assert table.rows == LENGTHS
    assert [(figure.value, figure.n) for figure in table.columns[MODEL]] == [(1.0, 2), (0.0, 1), (0.0, 1)]
    assert found.figures["accuracy"][MODEL].value == (2 / 2 + 0 / 2) / 2
    assert found.figures["equal_length_accuracy"][MODEL].value == 0.0
    assert found.figures["ties"][MODEL].value == 1 / 4
    assert any("1 ties are counted wrong" in remark for remark in found.remarks)
    assert any("50.0% of the pairs the good sentence has fewer tokens" in remark for remark in found.remarks)


def test_what_length_alone_would_reach_stands_beside_every_score(mixed: Path) -> None:
    found = outcome(task(mixed), likes("hh"))
    # in characters all good ones but the last are shorter
    assert found.figures["accuracy"][SHORTER].value == (1 + 1 / 2) / 2
    assert found.figures["pair_accuracy"][SHORTER].value == 3 / 4
    assert found.figures["equal_length_accuracy"][MODEL].value == 1.0
    assert all(CHANCE in by_label or SHORTER in by_label for by_label in found.figures.values())
    assert all({MODEL, CHANCE} <= table.columns.keys() for table in found.tables)


def test_paradigms_count_the_same_and_pairs_by_pair(tmp_path: Path) -> None:
    jsonl(tmp_path, "a.jsonl", [(f"good {n}", f"bad {n}") for n in range(8)], field="x")
    jsonl(tmp_path, "b.jsonl", [(f"bad {n}", f"good {n}") for n in range(2)], field="y")
    found = outcome(task(tmp_path), likes("good"))
    assert found.figures["accuracy"][MODEL].value == 0.5 and found.figures["pair_accuracy"][MODEL].value == 0.8
    assert found.figures["accuracy"][MODEL].n == 10 and found.counts["pairs"] == 10 and found.counts["paradigms"] == 2
    phenomena, paradigms = found.tables[:2]
    assert phenomena.main and phenomena.rows == ("x", "y") and paradigms.rows == ("a", "b")
    assert [figure.value for figure in phenomena.columns[MODEL]] == [1.0, 0.0]


def test_ties_are_wrong_also_where_rounding_tells_them_apart() -> None:
    noisy = {"log_probability": [-7.0, -7.0 + 3e-5, -7.0, -7.0 + 9e-5], "tokens": [4, 4, 4, 4]}
    verdict = judged(noisy, [1, 3, 0], [0, 2, 1])
    assert verdict.right.tolist() == [False, True, False] and verdict.tied.tolist() == [True, False, True]


def test_a_model_that_finds_the_good_word_more_probable_is_right_and_one_that_does_not_is_wrong(tmp_path: Path) -> None:
    jsonl(tmp_path, "a.jsonl", [(f"the cats {n} sleep", f"the cats {n} sleeps") for n in range(20)])
    found = outcome(task(tmp_path), likes("sleep"), likes("sleeps"))
    assert (found.figures["accuracy"][MODEL].value, found.figures["accuracy"]["champion"].value) == (1.0, 0.0)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(*2 * [st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6).map(" ".join)]), min_size=1),
    st.randoms(use_true_random=False),
    st.integers(0, 3),
)
def test_no_order_of_files_or_lines_changes_a_figure(tmp_path_factory, pairs, source: random.Random, most: int) -> None:
    pairs = [(good, bad) for good, bad in pairs if good != bad] or [("a", "b")]
    found = []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("pairs")
        for number in range(2):
            name = f"{source.randrange(10)}-{number}.jsonl"
            jsonl(folder, name, source.sample(pairs, len(pairs)), UID=f"p{number}")
        found.append(outcome(task(folder, max_pairs=most), random_rule(1), uniform).as_json())
    assert found[0] == found[1]


def test_the_size_of_a_batch_changes_no_verdict(tmp_path: Path, monkeypatch) -> None:
    store = Store(tmp_path / "store")
    words = small_model.vocabulary(store, small_model.corpus(store))
    weights = small_model.pretrain(store, words, small_model.shards(store, words), noise=0.3)
    plain = small_model.pretrain(store, words, small_model.shards(store, words))
    source, lists = random.Random(2), small_model.TEXT.split()
    pairs = [(" ".join(source.choices(lists, k=4)), " ".join(source.choices(lists, k=4))) for _ in range(20)]
    pairs = [(good, bad) for good, bad in pairs if good != bad]
    pairs += [(f"so {good}", f"so {' '.join(sorted(good.split()))}") for good, _ in pairs]
    jsonl(tmp_path, "a.jsonl", [(good, bad) for good, bad in pairs if good != bad])
    made = task(tmp_path)
    for manifest in (weights, plain):
        folder = manifest.whole("model/model.safetensors").parent
        subject = ours(folder, words.whole("tokenizer.json"), "small", "cpu")
        found = []
        for positions in (1, 50, 8192):
            given = partial(log_probabilities, positions=positions)
            monkeypatch.setattr(minimal_pairs, "log_probabilities", given)
            found.append(made.score(subject, lambda done: None))
        for other in found[1:]:
            assert np.allclose(other["log_probability"], found[0]["log_probability"], atol=1e-4, rtol=0)
        reports = [made.outcome({MODEL: one}, {}, Seen()).as_json() for one in found]
        assert reports[0] == reports[1] == reports[2]
    # A model whose blocks add nothing answers the same everywhere: the same words in another order are a tie.
    assert reports[0]["figures"]["ties"][MODEL]["value"] > 0.4


def test_equal_sentences_are_scored_once_and_progress_is_whole(tmp_path: Path) -> None:
    jsonl(tmp_path, "a.jsonl", [("a b c", "a c"), ("a b c", "c a b"), ("a c", "c a b")])
    made, subject, done = task(tmp_path), Fake(uniform), []
    made.score(subject, done.append)
    assert subject.asked == sum(done) == made.size(subject) == 3 + 2 + 3


def test_a_pair_that_one_model_cannot_read_counts_for_none(tmp_path: Path) -> None:
    jsonl(tmp_path, "a.jsonl", [("a b", "a b c d e f g h"), ("a b", "a c"), ("x", " y z "), ("\u200b", "x y")])
    made = task(tmp_path)
    scores = {
        "test": made.score(Fake(uniform), lambda done: None),
        "champion": made.score(Fake(uniform, length=6), lambda done: None),
    }
    assert [value is None for value in scores["champion"]["log_probability"]].count(True) == 1
    found = made.outcome(scores, {}, Seen())
    assert found.counts["left_out_beyond_the_context"] == 1 and found.counts["pairs"] == 3
    assert {figure.n for label, figure in found.figures["accuracy"].items()} == {3}
    with pytest.raises(UsageError, match="no pair of sentences can be read by every model"):
        made.outcome({"test": made.score(Fake(uniform, length=2), lambda done: None)}, {}, Seen())


def test_words_hardly_seen_are_counted_apart(tmp_path: Path) -> None:
    jsonl(tmp_path, "a.jsonl", [("the zyx good", "the zyx bad"), ("the cat good", "the cat bad")])
    made = task(tmp_path, rare=5)
    assert list(made.words()) == ["bad", "cat", "good", "the", "zyx"]
    counts = {"bad": 9, "cat": 5, "good": 9, "the": 99, "zyx": 4}
    found = outcome(made, likes("good"), seen=Seen(Exposure(2, 0, 0), counts))
    table = next(one for one in found.tables if "hardly" in one.title)
    assert [figure.n for figure in table.columns[MODEL]] == [1, 1] and "fewer than 5 times" in table.rows[0]
    assert found.exposure == Exposure(2, 0, 0)
    without = outcome(made, likes("good"))
    assert not any("hardly" in one.title for one in without.tables)
    assert any("hardly seen are not counted apart" in remark for remark in without.remarks)


def test_an_outcome_survives_json_and_names_its_metrics(mixed: Path) -> None:
    found = outcome(task(mixed), random_rule(3), baseline_untrained=uniform)
    assert outcome_of(json.loads(json.dumps(found.as_json()))).as_json() == found.as_json()
    assert {"test/set/accuracy", "baseline_shorter/set/accuracy", "test/set/ties"} <= metrics_of(found).keys()


def test_the_battery_runs_it(mixed: Path, tmp_path: Path) -> None:
    made = task(mixed)
    subjects = {MODEL: lambda: Fake(random_rule(0)), "champion": lambda: Fake(uniform)}
    (tmp_path / "scratch").mkdir()
    first, _ = run([made], subjects, {}, tmp_path / "scratch")
    again, _ = run([made], {label: lambda: pytest.fail("asked again") for label in subjects}, {}, tmp_path / "scratch")
    assert first[0].as_json() == again[0].as_json()


def test_a_score_that_is_not_a_number_stops_the_task(mixed: Path) -> None:
    with pytest.raises(NumericError, match="broken gives probabilities that are not finite"):
        task(mixed).score(Fake(lambda ids, place: np.full(4096, math.nan), label="broken"), lambda done: None)


# Files.


def test_what_is_no_pair_is_counted_by_reason_and_loses_nothing_else(tmp_path: Path) -> None:
    good = {"sentence_good": "a b", "sentence_bad": "b a"}
    lines = [
        json.dumps(good).encode(),
        b"{not json",
        b"[1]",
        b"",
        b'{"sentence_good": "\xff", "sentence_bad": "b"}',
        json.dumps({"sentence_good": "a"}).encode(),
        json.dumps({"sentence_good": "a", "sentence_bad": 3}).encode(),
        json.dumps({"sentence_good": "\ud800", "sentence_bad": "b"}).encode(),
        json.dumps({"sentence_good": " ", "sentence_bad": "b"}).encode(),
        json.dumps({"sentence_good": "a", "sentence_bad": "a"}).encode(),
        b"[" * 100_000,
        json.dumps(good | {"UID": 3, "linguistics_term": None, "field": "", "sentence_bad": "b"}).encode(),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\n\n")
    pairs, left_out = pairs_of(MinimalPairsConfig("set", (str(tmp_path / "a.jsonl"),)))
    assert [(one.good, one.bad, one.paradigm, one.phenomenon) for one in pairs] == [
        ("a b", "b a", "a", "unnamed"),
        ("a b", "b", "a", "unnamed"),
    ]
    expected = {"not_json": 3, "empty": 2, "not_utf8": 1, "without_two_sentences": 3, "of_equal_sentences": 1}
    assert left_out.counts == expected
    assert "3 not json (the first: a.jsonl, line 2)" in str(left_out)
    found = outcome(task(tmp_path), uniform)
    assert found.counts["left_out_not_utf8"] == 1 and any("a.jsonl, line 5" in remark for remark in found.remarks)
    assert [table.title for table in found.tables] == ["By paradigm", "By number of tokens"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b\n", "neither .jsonl nor .txt"),
        ("odd-one.txt", "bad\ngood\nbad\n", "has 3 lines, an odd number"),
        ("empty.jsonl", "", "has no pair of sentences; correct"),
        ("bad.jsonl", "{}\n", r"has no pair of sentences: 1 without two sentences \(the first: bad.jsonl, line 1\)"),
    ],
)
def test_a_file_of_no_use_is_an_error_that_names_it(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read(MinimalPairsConfig("set", (str(tmp_path / name),)))


def test_a_pattern_that_no_file_fits_and_a_folder_are_errors(tmp_path: Path) -> None:
    for pattern, why in (("*.jsonl", "is no file"), ("nothing.txt", "is no file"), ("", "is a folder")):
        with pytest.raises(UsageError, match=why):
            read(MinimalPairsConfig("set", (str(tmp_path / pattern),)))
    for wrong in ({"name": "Big Set"}, {"max_pairs": -1}, {"rare": 0}):
        with pytest.raises(UsageError):
            MinimalPairsConfig(**{"name": "set", "files": (), **wrong})


def test_zorro_text_has_the_bad_sentence_first(tmp_path: Path) -> None:
    (tmp_path / "filler-gap-wh_question.txt").write_text("who did .\nwhat did .\n\n\nx y\nz w\n\n", encoding="utf-8")
    (tmp_path / "plain.txt").write_text("b\na", encoding="utf-8")
    pairs, left_out = pairs_of(MinimalPairsConfig("zorro", (str(tmp_path / "*.txt"), str(tmp_path / "plain.txt"))))
    assert [(one.good, one.bad, one.phenomenon) for one in pairs] == [
        ("what did .", "who did .", "filler-gap"),
        ("z w", "x y", "filler-gap"),
        ("a", "b", "unnamed"),
    ]
    assert left_out.counts == {"empty": 1}


def test_a_draw_takes_as_many_of_each_paradigm_and_fewer_are_among_more(tmp_path: Path) -> None:
    for number in range(3):
        jsonl(tmp_path, f"{number}.jsonl", [(f"a {n}", f"b {n}") for n in range(10 + number)])
    pairs, _ = pairs_of(MinimalPairsConfig("set", (str(tmp_path / "*.jsonl"),)))
    few, more = drawn(pairs, 4), drawn(pairs, 7)
    assert Counter(one.paradigm for one in few) == {"0": 4, "1": 4, "2": 4} and set(few) < set(more)
    assert len(drawn(pairs, 0)) == 33 and len({one.good for one in few}) > 4
    found = outcome(task(tmp_path, max_pairs=4), uniform)
    assert found.counts["not_drawn"] == 21 and any("12 of 33 pairs are drawn" in remark for remark in found.remarks)


@REAL
def test_the_real_files_are_read_whole() -> None:
    blimp = pairs_of(MinimalPairsConfig("blimp", (str(DATA / "blimp_first300/*.jsonl"),)))
    assert len(blimp[0]) == 67 * 300 - 2 and blimp[1].counts == {"of_equal_sentences": 2}
    assert len({one.phenomenon for one in blimp[0]}) == 13 and len({one.paradigm for one in blimp[0]}) == 67
    zorro = pairs_of(MinimalPairsConfig("zorro", (str(DATA / "zorro/*.txt"),)))
    assert Counter(one.paradigm for one in zorro[0]) == dict.fromkeys({one.paradigm for one in zorro[0]}, 2000)
    assert len(zorro[0]) == 24_000 and not zorro[1].counts
    assert "island-effects" in {one.phenomenon for one in zorro[0]}
    first = next(one for one in zorro[0] if one.paradigm == "quantifiers-superlative")
    assert first.good == "no pig could stand on top of more than six days ."


@REAL
def test_a_thousand_real_pairs_take_seconds_of_bookkeeping() -> None:
    made = read(MinimalPairsConfig("zorro", (str(DATA / "zorro/*.txt"),)))
    tokens = [len(text.split()) for text in made.sentences]
    values = np.random.default_rng(0).normal(-30, 5, len(tokens)).tolist()
    scores = {label: {"log_probability": values, "tokens": tokens} for label in ("test", "champion")}
    counts = dict.fromkeys(made.words(), 100)
    started = time.process_time()
    found = made.outcome(scores, {}, Seen(None, counts | {"pig": 3}))
    assert time.process_time() - started < 10
    assert abs(found.figures["accuracy"][MODEL].value - 0.5) < 0.02
    low, high = found.figures["accuracy"][MODEL].low, found.figures["accuracy"][MODEL].high
    assert low < 0.5 < high and high - low < 0.03
    assert found.figures["accuracy"][SHORTER].value == pytest.approx(0.156, abs=0.001)
    hardly = next(one for one in found.tables if "hardly" in one.title).columns[MODEL][0]
    assert hardly.n == sum("pig" in words_in(f"{one.good} {one.bad}") for one in made.pairs) > 0


# The interval of shares.


def test_the_interval_of_one_share_is_that_of_a_ratio() -> None:
    right = np.arange(400) % 4 == 0
    assert shares_interval([100], [400]) == pytest.approx(ratio_interval(right, np.ones(400)), abs=0.01)
    assert shares_interval([5, 0], [5, 3]) == (0.5, 0.5)


def test_the_interval_of_a_mean_of_shares_holds_the_truth_about_as_often_as_it_says() -> None:
    generator, sizes, inside = np.random.default_rng(3), np.array([20, 40, 400, 100]), 0
    shares = np.array([0.3, 0.5, 0.9, 0.6])
    for trial in range(300):
        low, high = shares_interval(generator.binomial(sizes, shares), sizes, seed=trial)
        inside += low <= shares.mean() <= high
    assert 0.90 <= inside / 300 <= 0.98
