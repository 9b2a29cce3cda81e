"""Masked scores in full: what is cut into classes sums to the whole. pytest tests/tasks/test_intrinsic.py"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks import intrinsic
from tasks.agenda import baselines, strata
from tasks.artifacts import Store
from tasks.batches import ShardReader, frozen_batch
from tasks.bootstrap import ratio_interval
from tasks.curve import draw
from tasks.errors import UsageError
from tasks.intrinsic import ECE, LOSS, PERPLEXITY, TOP1, TOP5, outcomes
from tasks.intrinsic import asked as asked_of
from tasks.masking import fraction
from tasks.results import BIGRAM, CHAMPION, MODEL, UNTRAINED, metrics_of, outcome_of
from tasks.scoring import constant_scorer, frozen_batches, score
from tests.tasks import handmade

SIZE = 61
RATES = ("0.15", "0.3", "0.5")


def guess(tokens_BL, segment_ids_BL, masked_M):
    """A model of sorts: prefers what is like its left neighbour, more or less."""
    left_M = tokens_BL.reshape(-1)[masked_M - 1]
    return -(torch.arange(SIZE) - left_M[:, None] - 3).abs().float() / 4


def worse(tokens_BL, segment_ids_BL, masked_M):
    return guess(tokens_BL, segment_ids_BL, masked_M) / 2


def asked(shards, rows):
    reader = ShardReader(shards, "test")
    return asked_of(reader, shards, rows, strata(reader, np.load(shards.whole("unigrams.npy"))))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return handmade.shards(Store(tmp_path_factory.mktemp("store")), rows=160)


@pytest.fixture(scope="module")
def scorers(shards):
    found, _ = baselines(shards, [[5, SIZE]])
    return {MODEL: guess, **found, UNTRAINED: constant_scorer(torch.zeros(SIZE)), CHAMPION: worse}


@pytest.fixture(scope="module")
def what(shards):
    return asked(shards, np.arange(40))


@pytest.fixture(scope="module")
def found(what, scorers):
    return outcomes(what, RATES, scorers, 8, lambda _: None, ("Said of the scorers.",))


def test_the_figures_are_the_sums_over_all_hidden_tokens(shards, scorers, found):
    reader = ShardReader(shards, "test")
    for rate, one in zip(RATES, found, strict=True):
        tallies = score(scorers, frozen_batches(reader, np.arange(40), rate, 40), lambda _: None)
        for label, tally in tallies.items():
            for name, value in tally.metrics().items():
                assert one.figures[name][label].value == pytest.approx(value, rel=1e-9), (rate, label, name)
            assert one.figures[LOSS][label].n == tally.masked == one.counts["masked"]


def test_the_names_are_those_that_the_registry_and_mlflow_know(found):
    names = {name for one in found for name in metrics_of(one)}
    for rate in RATES:
        for label in ("test", "champion", "baseline_unigram", "baseline_bigram", "baseline_untrained"):
            for name in ("masked_cross_entropy", "perplexity", "top1_accuracy", "top5_accuracy", "calibration_error"):
                assert f"{label}/rate_{rate}/{name}" in names


def test_uniform_logits_score_exactly_ln_v(found):
    for one in found:
        assert one.figures[LOSS][UNTRAINED].value == pytest.approx(math.log(SIZE), abs=1e-12)
        assert one.figures[PERPLEXITY][UNTRAINED].value == pytest.approx(SIZE, rel=1e-12)
        assert one.figures[ECE][UNTRAINED].value == pytest.approx(abs(one.figures[TOP1][UNTRAINED].value - 1 / SIZE))


def test_every_table_sums_to_the_whole(found):
    own = found[1]
    assert len(own.tables) == 6 and not found[0].tables and not found[2].tables
    for table in own.tables:
        name = LOSS if "cross-entropy" in table.title else TOP1
        assert table.columns.keys() == own.figures[name].keys()
        for label, column in table.columns.items():
            whole = own.figures[name][label]
            assert len(column) == len(table.rows)
            assert sum(one.n for one in column if one) == whole.n
            assert sum(one.n * one.value for one in column if one) == pytest.approx(whole.n * whole.value, rel=1e-9)


def test_the_bins_of_reliability_sum_to_the_whole_and_give_the_error(found):
    for label, bins in found[1].details["reliability"].items():
        n = sum(size for _, _, size in bins)
        assert n == found[1].counts["masked"]
        right = sum(accuracy * size for _, accuracy, size in bins) / n
        assert right == pytest.approx(found[1].figures[TOP1][label].value)
        error = sum(abs(accuracy - confidence) * size for confidence, accuracy, size in bins) / n
        assert error == pytest.approx(found[1].figures[ECE][label].value)


def test_neither_the_size_of_a_batch_nor_the_order_of_the_rows_matters(shards, scorers, found):
    backwards = asked(shards, np.arange(40)[::-1])
    for rows in (40, 7):
        for one, other in zip(found[1:], outcomes(backwards, RATES[1:], scorers, rows, lambda _: None), strict=True):
            for name, of_label in one.figures.items():
                for label, figure in of_label.items():
                    again = other.figures[name][label]
                    assert again.value == pytest.approx(figure.value, rel=1e-6, abs=1e-6), (name, label)
                    assert again.n == figure.n
            for table, again in zip(one.tables, other.tables, strict=True):
                for label, column in table.columns.items():
                    assert [cell and cell.n for cell in column] == [cell and cell.n for cell in again.columns[label]]


def test_a_lower_rate_hides_a_part_of_what_a_higher_one_hides(shards):
    reader = ShardReader(shards, "test")
    before: set[int] = set()
    for rate in ("0.1", "0.15", "0.3", "0.31", "0.5", "0.9"):
        batch = frozen_batch(reader, np.arange(40), rate)
        hidden = set(batch.masked_M[: batch.count].tolist())
        assert before <= hidden
        lengths, _ = reader.segments_of_rows(np.arange(40))
        assert len(hidden) == sum(math.floor((int(length) - 2) * fraction(rate)) for length in lengths)
        before = hidden


def test_the_interval_is_that_of_whole_documents(shards, scorers, what):
    """Two segments of one document are drawn together or not at all."""
    merged = replace(what, document_S=what.document_S // 4)
    alone, together = (outcomes(one, ["0.3"], scorers, 8, lambda _: None)[0] for one in (what, merged))
    assert alone.figures[LOSS][MODEL].value == together.figures[LOSS][MODEL].value
    assert alone.counts["documents"] > together.counts["documents"] == len(np.unique(what.document_S // 4))
    for one in (alone, together):
        for name in (LOSS, PERPLEXITY, TOP1, TOP5):
            figure = one.figures[name][MODEL]
            assert figure.low < figure.value < figure.high
    reader, nll, masked = ShardReader(shards, "test"), np.zeros(10**3), np.zeros(10**3)
    for batch in frozen_batches(reader, np.arange(40), "0.3", 40):
        at = batch.masked_M[: batch.count]
        _, offsets = reader.segments_of_rows(batch.sequence_ids_B)
        segment = offsets[at.numpy() // 32] + batch.segment_ids_BL.reshape(-1)[at].numpy()
        logits = guess(batch.tokens_BL, None, at).double().log_softmax(1)
        np.add.at(nll, segment // 4, -logits[torch.arange(len(at)), batch.targets_M[: batch.count]].numpy())
        np.add.at(masked, segment // 4, 1)
    low, high = ratio_interval(nll, masked)
    assert (together.figures[LOSS][MODEL].low, together.figures[LOSS][MODEL].high) == pytest.approx((low, high))


def test_of_one_document_there_is_no_interval_and_it_is_said(what, scorers):
    one = outcomes(replace(what, document_S=what.document_S * 0), ["0.3"], scorers, 8, lambda _: None)[0]
    assert one.figures[LOSS][MODEL].low is None and one.counts["documents"] == 1
    assert any("there is one only" in remark for remark in one.remarks)


def test_the_difference_to_the_champion_is_paired(found, what, scorers):
    for one in found:
        apart, losses = one.details["difference_to_champion"], one.figures[LOSS]
        assert apart["value"] == pytest.approx(losses[MODEL].value - losses[CHAMPION].value)
        assert apart["low"] < apart["value"] < apart["high"]
        width = (losses[MODEL].high - losses[MODEL].low) + (losses[CHAMPION].high - losses[CHAMPION].low)
        assert apart["high"] - apart["low"] < width
    alone = {label: scorer for label, scorer in scorers.items() if label != CHAMPION}
    assert "difference_to_champion" not in outcomes(what, ["0.3"], alone, 8, lambda _: None)[0].details


def test_an_outcome_survives_json_and_says_what_a_reader_has_to_know(found):
    for one in found:
        assert outcome_of(json.loads(json.dumps(one.as_json()))) == outcome_of(one.as_json())
        assert one.title.startswith("Hidden tokens, ") and one.remarks[-1]
    assert "Said of the scorers." in found[0].remarks
    assert any("table by source" in remark for remark in found[1].remarks)
    assert found[0].title == "Hidden tokens, 15\u00a0% of each segment"


def test_bigger_logits_are_read_fewer_rows_at_a_time(what, scorers, found, monkeypatch):
    monkeypatch.setattr(intrinsic, "LOGITS_AT_ONCE", 3 * 32 * SIZE // 2)
    sizes: list[int] = []
    again = outcomes(what, ["0.5"], scorers, 8, sizes.append)[0]
    assert max(sizes) == 3 and sum(sizes) == 40
    assert again.figures[LOSS][BIGRAM].value == pytest.approx(found[2].figures[LOSS][BIGRAM].value, rel=1e-9)


def test_a_rate_that_hides_nothing_is_refused(what, scorers):
    with pytest.raises(UsageError, match=r"rate 0\.001 hides no token"):
        outcomes(what, ["0.001"], scorers, 8, lambda _: None)


def test_the_curve_has_every_line_and_the_same_bytes_every_time():
    points = [{"tokens": 1000 * n, "train/loss": 5.6 - 0.1 * n} for n in range(5)]
    lines = {"unigram": 5.5, "bigram": 4.9, "untrained": 5.6, "champion before": 4.1}
    whole = draw(points, lines, "0.3")
    assert whole == draw(points, lines, "0.3") and whole[:4] == b"\x89PNG"
    without_last = dict(list(lines.items())[:-1])
    assert draw(points, without_last, "0.3") != whole
    assert draw([], {"unigram": 5.5}, "0.3")[:4] == b"\x89PNG"
