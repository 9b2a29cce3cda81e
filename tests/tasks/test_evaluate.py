"""Evaluation: the scores are what their definitions say. pytest tests/tasks/test_evaluate.py"""

import json
import math
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks import intrinsic, masking, minimal_pairs, pseudo_likelihood
from tasks.artifacts import Store, verify
from tasks.batches import ShardReader
from tasks.errors import DataError, NumericError, UsageError
from tasks.evaluate import EvaluateConfig, _Build, evaluate, identity
from tasks.examples import ClassificationConfig
from tasks.manifests import mark
from tasks.pairs_file import MinimalPairsConfig
from tasks.scoring import frozen_batches, model_scorer, score
from tests.tasks import handmade, small_model

CONFIG = EvaluateConfig(sentences=("the cat [MASK] on the [MASK].",), threads=1, rows_per_batch=8)


def scored(config, words, rows, weights, champion, store):
    return evaluate(config, small_model.corpus(store), words, rows, weights, champion, store)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    torch.set_num_threads(1)
    store = Store(tmp_path_factory.mktemp("store"))
    words = small_model.vocabulary(store, small_model.corpus(store))
    rows = small_model.shards(store, words)
    weights = small_model.pretrain(store, words, rows, noise=0.05)
    report, _ = scored(CONFIG, words, rows, weights, None, store)
    return store, words, rows, weights, report


def test_every_masked_token_is_counted_once_and_exactly(parts):
    _, _, shards, _, report = parts
    reader = ShardReader(shards, "test")
    lengths, _ = reader.segments_of_rows(np.arange(reader.rows))
    for rate in ("0.15", "0.3"):
        expected = sum(math.floor((int(length) - 2) * Fraction(rate)) for length in lengths)
        assert report.facts["masked"][rate] == expected == report.counts[f"masked_rate_{rate}"]


def test_the_unigram_baseline_equals_an_independent_computation(parts):
    _, _, shards, _, report = parts
    counts = np.load(shards.path("unigrams.npy"))
    total = int(counts.sum()) + len(counts) - 5
    log_p = {token: math.log((int(counts[token]) + 1) / total) for token in range(5, len(counts))}
    ranking = sorted(log_p, key=lambda token: (-log_p[token], token))
    reader = ShardReader(shards, "test")
    ids = np.arange(reader.rows)
    lengths, offsets = reader.segments_of_rows(ids)
    hidden = masking.draw(masking.EVALUATION_SEED, 0, ids, lengths, offsets, reader.length, "0.15")
    targets = reader.rows_of(ids)[hidden].tolist()
    got = {
        name.rsplit("/", 1)[1]: value
        for name, value in report.facts["metrics"].items()
        if name.startswith("baseline_unigram/rate_0.15/")
    }
    loss = -sum(log_p[token] for token in targets) / len(targets)
    assert got["masked_cross_entropy"] == pytest.approx(loss, abs=2e-6)
    assert got["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert got["top1_accuracy"] == pytest.approx(np.mean([t in ranking[:1] for t in targets]), abs=1e-6)
    assert got["top5_accuracy"] == pytest.approx(np.mean([t in ranking[:5] for t in targets]), abs=1e-6)


def test_the_model_scores_what_a_plain_loop_over_rows_says(parts):
    from tasks.encoder import Segments
    from tasks.stock import load_stock

    _, _, shards, weights, report = parts
    model = load_stock(weights.path("model/config.json").parent)
    reader = ShardReader(shards, "test")
    total = count = 0
    for row in range(reader.rows):
        tokens = reader.rows_of(np.array([row]))[0]
        lengths, offsets = reader.segments_of_rows(np.array([row]))
        hidden = masking.draw(masking.EVALUATION_SEED, 0, [row], lengths, offsets, reader.length, "0.3")[0]
        start = 0
        for length in lengths:  # each segment alone: nothing else in its row may matter
            piece, inside = tokens[start : start + length], hidden[start : start + length]
            shown = torch.tensor(np.where(inside, 4, piece))[None]
            segments = Segments.from_ids(torch.zeros_like(shown), model.config.window)
            with torch.no_grad():
                log_p = model.head(model.encoder(shown, segments))[0].log_softmax(-1)
            total -= sum(float(log_p[at, int(piece[at])]) for at in np.flatnonzero(inside))
            count += int(inside.sum())
            start += length
    assert report.facts["metrics"]["test/rate_0.3/masked_cross_entropy"] == pytest.approx(total / count, abs=1e-5)


def test_the_size_of_a_batch_does_not_matter(parts):
    store, words, rows, weights, report = parts
    other, _ = scored(replace(CONFIG, rows_per_batch=3), words, rows, weights, None, store)
    assert other.key != report.key
    for name, value in report.facts["metrics"].items():
        assert other.facts["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_the_same_report_again_has_the_same_bytes(parts, tmp_path):
    _, words, rows, weights, report = parts
    again, reused = scored(CONFIG, words, rows, weights, None, Store(tmp_path))
    assert not reused
    assert again.digest == report.digest
    assert again.path("curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_report_is_found_again_and_whole(parts):
    store, words, rows, weights, report = parts
    again, reused = scored(CONFIG, words, rows, weights, None, store)
    assert reused and again.digest == report.digest and verify(again) == []


def test_the_untrained_model_is_the_one_that_training_started_from(parts):
    store, words, rows, _, report = parts
    start = small_model.pretrain(store, words, rows, noise=0.0)
    metrics = scored(CONFIG, words, rows, start, None, store)[0].facts["metrics"]
    for name, value in metrics.items():
        if name.startswith("test/"):
            untrained = name.replace("test/", "baseline_untrained/")
            assert metrics[untrained] == pytest.approx(value, rel=1e-6, abs=1e-6)
            assert report.facts["metrics"][untrained] == pytest.approx(value, rel=1e-6, abs=1e-6)


def test_the_champion_is_scored_beside_it(parts):
    store, words, rows, weights, report = parts
    best = small_model.pretrain(store, words, rows, noise=0.0)
    duel, _ = scored(CONFIG, words, rows, weights, best, store)
    alone, _ = scored(CONFIG, words, rows, best, None, store)
    name = "rate_0.3/masked_cross_entropy"
    assert duel.facts["metrics"][f"champion/{name}"] == alone.facts["metrics"][f"test/{name}"]
    assert duel.facts["metrics"][f"test/{name}"] == report.facts["metrics"][f"test/{name}"]
    assert duel.identity.inputs["champion"] == best.digest
    assert duel.facts["test"] == alone.facts["test"]


def test_a_champion_of_another_vocabulary_is_named_and_not_scored(parts):
    store, words, rows, weights, _ = parts
    stranger = small_model.pretrain(store, replace(words, digest="f" * 64), rows, seed=3)
    report, _ = scored(CONFIG, words, rows, weights, stranger, store)
    assert not any(name.startswith("champion/") for name in report.facts["metrics"])
    fact = report.facts["champion"]
    assert fact["pretrain"] == stranger.digest and not fact["scored"] and "vocabulary" in fact["reason"]


def test_a_model_is_not_its_own_champion():
    alone = identity(CONFIG, "c", "v", "s", "p", None)
    assert identity(CONFIG, "c", "v", "s", "p", "p").key == alone.key != identity(CONFIG, "c", "v", "s", "p", "q").key


def test_predictions_are_five_tokens_for_each_mask(parts):
    (prediction,) = parts[-1].facts["predictions"]
    assert [len(ranked) for ranked in prediction["masks"]] == [5, 5]
    probabilities = [it["probability"] for it in prediction["masks"][0]]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) < 1
    assert all(isinstance(it["token"], str) and it["token"] for it in prediction["masks"][0])


def test_the_report_file_says_what_the_manifest_says(parts):
    report = json.loads(parts[-1].path("report.json").read_text())
    outcomes = {one["task"]: one for one in report.pop("outcomes")}
    assert report == json.loads(json.dumps(parts[-1].facts))
    for name, value in parts[-1].facts["metrics"].items():
        label, task, metric = name.split("/")
        assert round(outcomes[task]["figures"][metric][label]["value"], 6) == value


def test_the_shards_rate_comes_once_whatever_way_it_is_written(parts):
    store, words, rows, weights, _ = parts
    config = replace(CONFIG, rates=("0.30", "50%"), max_rows=4)
    report, _ = scored(config, words, rows, weights, None, store)
    assert report.facts["rates"] == ["0.3", "0.5"]
    assert report.counts["rows"] == 4


@pytest.mark.parametrize("which", ["weights", "unigrams", "tokenizer"])
def test_a_flipped_bit_in_an_input_is_refused_and_never_sealed_as_a_result(parts, which):
    store, words, rows, weights, _ = parts
    path = {
        "weights": weights.path("model/model.safetensors"),
        "unigrams": rows.path("unigrams.npy"),
        "tokenizer": words.path("tokenizer.json"),
    }[which]
    good = path.read_bytes()
    bad = bytearray(good)
    bad[-9] ^= 1
    path.write_bytes(bad)
    try:
        with pytest.raises(DataError, match=f"{path.name} is damaged"):
            scored(replace(CONFIG, max_rows=3, sentences=("The [MASK].",)), words, rows, weights, None, store)
    finally:
        path.write_bytes(good)
        for manifest in (weights, rows, words):
            mark(manifest.folder, [])


def test_hidden_positions_show_the_mask_whatever_training_did(parts):
    store, words, *_ = parts
    mixed = handmade.shards(store, rows=64, length=32, size=words.facts["size"], corruption="80/10/10")
    reader = ShardReader(mixed, "test")
    for batch in frozen_batches(reader, np.arange(reader.rows), "0.3", 8):
        assert (batch.tokens_BL.flatten()[batch.masked_M[: batch.count]] == 4).all()


def test_shards_or_weights_of_another_vocabulary_are_refused(tmp_path):
    store = Store(tmp_path)
    parent = handmade.vocabulary(store)
    for made in ("shards", "pretrain"):
        odd = SimpleNamespace(stage=made, digest="a" * 64, identity=SimpleNamespace(inputs={"vocabulary": "f" * 64}))
        right = SimpleNamespace(identity=SimpleNamespace(inputs={}))
        inputs = (odd, right) if made == "shards" else (right, odd)
        with pytest.raises(
            UsageError, match=f"evaluate: the {made} artifact aaaaaaaaaaaa was made with the vocabulary ffff"
        ):
            scored(EvaluateConfig(), parent, *inputs, None, store)


@pytest.mark.parametrize("text", ["no mask", "[mask]"])
def test_a_sentence_without_a_mask_is_refused(text):
    with pytest.raises(UsageError, match="holds no"):
        EvaluateConfig(sentences=(text,))


def test_a_sentence_beyond_the_context_is_refused(parts):
    store, words, rows, weights, _ = parts
    with pytest.raises(UsageError, match="context"):
        scored(replace(CONFIG, sentences=("x" * 60 + " [MASK]",)), words, rows, weights, None, store)


def test_weights_that_are_not_finite_are_refused(parts, tmp_path):
    _, words, rows, _, _ = parts
    store = Store(tmp_path)
    broken = small_model.pretrain(store, words, rows, noise=1e30)
    with pytest.raises(NumericError, match="this model gives probabilities that are not finite"):
        scored(CONFIG, words, rows, broken, None, store)


def test_a_flipped_bit_in_the_test_shard_is_found(tmp_path):
    store = Store(tmp_path)
    words = small_model.vocabulary(store, small_model.corpus(store))
    rows = small_model.shards(store, words)
    weights = small_model.pretrain(store, words, rows)
    path = rows.path("test-00000.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="test-00000"):
        scored(CONFIG, words, rows, weights, None, store)


def test_a_scorer_sees_no_hidden_token(parts):
    """The check that catches a leak: an oracle that copies what it is shown is right nowhere."""
    _, _, shards, _, _ = parts
    reader, size = ShardReader(shards, "test"), shards.facts["vocabulary"]["size"]

    def copy(tokens_BL, segment_ids_BL, masked_M):
        return torch.nn.functional.one_hot(tokens_BL.flatten()[masked_M], size).float()

    batches = frozen_batches(reader, np.arange(reader.rows), "0.3", 8)
    assert score({"copy": copy}, batches, lambda _: None)["copy"].top1 == 0


def test_scores_are_on_the_device_of_the_model(parts):
    from tasks.stock import load_stock

    _, _, shards, weights, _ = parts
    model = load_stock(weights.path("model/config.json").parent)
    batch = next(frozen_batches(ShardReader(shards, "test"), np.arange(4), "0.3", 4))
    logits = model_scorer(model)(batch.tokens_BL, batch.segment_ids_BL, batch.masked_M[: batch.count])
    assert logits.shape == (batch.count, shards.facts["vocabulary"]["size"]) and logits.device.type == "cpu"


def test_the_unigram_baseline_has_a_probability_for_an_unknown_token():
    shards = SimpleNamespace(facts={"vocabulary": {"ordinary": [[5, 20], [30, 40]]}})
    for unknown, expected in ((True, [[5, 20], [30, 40], [1, 2]]), (False, [[5, 20], [30, 40]])):
        words = SimpleNamespace(facts={"special_ids": handmade.SPECIAL_IDS, "unknown": unknown})
        build = _Build(None, CONFIG, None, words, shards, None, None, None)
        assert build._can_be_hidden() == expected


def test_half_a_character_in_a_sentence_is_refused():
    with pytest.raises(UsageError, match="half of a surrogate pair"):
        EvaluateConfig(sentences=("a [MASK] \ud800",))


# Evaluation sets.


def pairs_in(path, text="the cat sat on the mat ."):
    path.mkdir(exist_ok=True)
    lines = [f"mat the on sat cat number {n} the .\n{text} number {n}" for n in range(6)]
    (path / "order-words.txt").write_text("\n".join(lines) + "\n")
    return MinimalPairsConfig("pairs", (str(path / "*.txt"),))


def test_an_evaluation_that_was_killed_goes_on_and_ends_in_the_same_bytes(parts, tmp_path, monkeypatch):
    _, words, rows, weights, _ = parts
    config = replace(CONFIG, minimal_pairs=(pairs_in(tmp_path / "sets"),))
    whole, _ = scored(config, words, rows, weights, None, Store(tmp_path / "undisturbed"))
    with monkeypatch.context() as patched:
        patched.setattr(minimal_pairs.MinimalPairs, "outcome", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            scored(config, words, rows, weights, None, Store(tmp_path / "killed"))
    for module, name in ((intrinsic, "outcomes"), (pseudo_likelihood, "log_probabilities")):
        monkeypatch.setattr(module, name, None)  # all models were asked: nobody is asked again
    again, reused = scored(config, words, rows, weights, None, Store(tmp_path / "killed"))
    assert not reused and again.digest == whole.digest
    assert {"test/pairs/accuracy", "baseline_untrained/pairs/accuracy", "baseline_chance/pairs/accuracy"} <= set(
        again.facts["metrics"]
    )


def test_what_a_set_holds_counts_and_not_where_it_lies(tmp_path):
    def key(config):
        return identity(replace(CONFIG, minimal_pairs=(config,)), "c", "v", "s", "p", None).key

    here, there = pairs_in(tmp_path / "here"), pairs_in(tmp_path / "there")
    assert key(here) == key(there) != identity(CONFIG, "c", "v", "s", "p", None).key
    assert key(pairs_in(tmp_path / "there", "the dog sat on the mat .")) != key(here)
    with pytest.raises(UsageError, match=r"evaluation set pairs: .*nowhere"):
        key(MinimalPairsConfig("pairs", (str(tmp_path / "nowhere" / "*.txt"),)))


def test_the_order_of_training_files_counts_and_that_of_pairs_does_not(tmp_path):
    rows = "text\tlabel\n" + "".join(f"{{}} {n}\t{n % 2}\n" for n in range(40))
    for name in "ab":
        (tmp_path / f"{name}.tsv").write_text(rows.replace("{}", name))
    a, b = (str(tmp_path / f"{name}.tsv") for name in "ab")

    def key(**sets):
        return identity(replace(CONFIG, **sets), "c", "v", "s", "p", None).key

    def texts(*train):
        return key(classification=(ClassificationConfig("texts", train),))

    assert len({texts(a, b), texts(b, a), texts(a), texts(a, a)}) == 4
    pairs_in(tmp_path)
    (tmp_path / "order-more.txt").write_text("b a\na b\n")
    one, two = (str(tmp_path / f"order-{name}.txt") for name in ("words", "more"))
    forth, back = (MinimalPairsConfig("pairs", files) for files in ((one, two), (two, one)))
    assert key(minimal_pairs=(forth,)) == key(minimal_pairs=(back,))


def test_two_sets_of_one_name_are_refused(tmp_path):
    with pytest.raises(UsageError, match="two evaluation sets are called 'pairs'"):
        EvaluateConfig(minimal_pairs=(pairs_in(tmp_path), pairs_in(tmp_path)))


def test_texts_that_do_not_fit_into_the_context_cost_a_figure_and_not_the_report(parts, tmp_path):
    store, words, rows, weights, _ = parts
    letters = tmp_path / "order-letters.txt"
    letters.write_text("\n".join("q" * n for n in range(60, 70)))  # a token each, and the context has 32
    config = replace(CONFIG, max_rows=2, minimal_pairs=(MinimalPairsConfig("letters", (str(letters),)),))
    report, _ = scored(config, words, rows, weights, None, store)
    assert [sentence.split()[0] for sentence in report.facts["left_out"]] == ["letters"]
    assert "letters is left out" in report.path("report.html").read_text()
    assert not any("/letters/" in name for name in report.facts["metrics"])
