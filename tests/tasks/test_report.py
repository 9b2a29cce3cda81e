"""The report says what was measured, against what and of how many, whatever names and texts are. test_report.py"""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tasks.report import Curve, Examined, Report, as_json, markdown, page
from tasks.report_words import against, exposed, gap, verdict
from tasks.results import BASELINE, CHAMPION, MODEL, UNIGRAM, Exposure, Figure, Metric, Outcome, name_of, outcome_of
from tasks.sheet import UNSHOWN
from tests.tasks import made_outcomes as made
from tests.tasks.test_corpus_card import HOSTILE, MARKS, Reader

WILD = [
    *HOSTILE,
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "'\"\x07\ud800",
    "x" * 300,
    "javascript:alert(1)",
    "",
]
TAGS = re.compile(
    "html|head|meta|title|style|body|main|h[1-4]|section|div|p|b|i|ul|li|span|code|pre|details|summary|figure|figcaption|"
    "blockquote|bdi|table|thead|tbody|tr|th|td|small|svg|path|line|dl|dt|dd|a|br"
)
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "http-equiv", "class", "style", "title", "role", "aria-label", "dir"),
    *("scope", "aria-hidden", "viewbox", "preserveaspectratio", "d", "x1", "x2", "y1", "y2", "stroke-width", "href"),
}
calm = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
VOID = ("<br>", "")


def report(outcomes: list[Outcome], **more: Any) -> Report:
    return Report("quickstart", [Examined(MODEL, "quickstart", {"parameters": 1_201_408})], outcomes, **more)


def curve(levels: dict[str, Figure] | None = None) -> Curve:
    points = [{"tokens": 1000 * n, "train/loss": 9 / n} for n in range(1, 20)]
    points += [{"tokens": 19_000, "validation/masked_cross_entropy": 3.4}, {"tokens": 20_000, "train/loss": math.nan}]
    return Curve(points, "0.3", levels or {UNIGRAM: Figure(6.655, 60_412)})


def full() -> Report:
    guesses = [{"token": " door", "probability": 0.5}, {"token": " ", "probability": 0.1}]
    return report(
        made.of_one(),
        curve=curve(),
        predictions={MODEL: [{"text": "She opened the [MASK].", "masks": [guesses]}]},
        links={"MLflow run": "http://127.0.0.1:5000/#/runs/1"},
        commands={"Make it again": "maskmill run quickstart"},
    )


def two(first: str = "mine/3", second: str = "bert-base-uncased") -> Report:
    return Report("A comparison", [Examined(first, first), Examined(second, second)], made.of_two(first, second))


class Sections(HTMLParser):
    """Rows, tiles and items with figures: (the section's title, the cells' text)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.title, self.into, self.where = "", "", ""
        self.rows: list[tuple[str, str]] = []
        self.sections: dict[str, str] = {}
        self.feed(text.split("<main>")[1])

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "h2":
            self.title, self.into = "", "title"
        if tag == "tr" or (tag == "div" and self.where == "tiles"):
            self.rows.append((self.title, ""))
        if tag == "div":
            self.where = "tiles" if ("class", "tiles sets") in attributes else self.where

    def handle_endtag(self, tag: str) -> None:
        self.into = "" if tag == "h2" else self.into
        self.where = "" if tag == "section" else self.where

    def handle_data(self, data: str) -> None:
        if self.into == "title":
            self.title += data
        self.sections[self.title] = self.sections.get(self.title, "") + " " + data
        if self.rows and self.rows[-1][0] == self.title:
            self.rows[-1] = self.title, self.rows[-1][1] + " " + data


def parsed(text: str) -> Reader:
    return Reader(text.replace(*VOID))


# No score without its baseline and its n.


@pytest.mark.parametrize("made_report", [full(), two()], ids=["one", "two"])
def test_no_score_is_shown_without_its_baseline_and_its_n(made_report):
    read = Sections(page(made_report))
    for one in made_report.outcomes:
        text = read.sections[one.title]
        for name, by_label in one.figures.items():
            metric = one.metrics[name]
            assert metric.title in text
            for figure in by_label.values():
                assert f"n = {figure.n:,} {metric.of}" in text or f"n {figure.n:,}" in text
        for label in {label for row in one.figures.values() for label in row if label.startswith(BASELINE)}:
            assert name_of(label) in text
    glance = [text for title, text in read.rows if title == "At a glance"][-len(made_report.outcomes) :]
    for one, text in zip(made_report.outcomes, glance, strict=True):
        n = next(iter(one.figures[one.main].values())).n
        assert f"{n:,}" in text and one.metrics[one.main].of in text
        baselines = [name_of(label) for label in one.figures[one.main] if label.startswith(BASELINE)]
        assert any(name in text for name in baselines)


def test_tiles_of_one_model_say_n_and_the_best_baseline():
    text = Sections(page(report([made.pairs({MODEL: 0.702}), made.classes({MODEL: 0.1})]))).sections["At a glance"]
    for said in ("70.2", "best baseline: RoBERTa-base (published) 82.5", "n = 20,100 pairs", "bag of words", "527"):
        assert said in text


def test_every_row_of_a_table_says_its_n():
    one = made.pairs({MODEL: 0.7}, paradigms=9)
    rows = [text for title, text in Sections(page(report([one]))).rows if title == "Zorro" and "paradigm_" in text]
    assert len(rows) == 9 and all(" 300" in text for at, text in enumerate(rows) if at != 5)
    assert "–" in rows[5] and "–" in rows[7]


def test_a_table_without_a_baseline_names_that_of_the_whole():
    assert "No baseline by phenomenon; over all of them: RoBERTa-base (published) 82.5" in page(full())


# What is said.


def test_the_verdict_says_what_is_beaten_and_what_is_not():
    said = verdict(made.of_one(), {})
    assert said.startswith("Better than the champion before by 0.089 nats, bigram by 1.789 nats, unigram by 3.244 nats")
    assert "Above every baseline: RTE." in said
    assert "Not told apart from the best baseline: CoLA (bag of words)." in said
    assert said.endswith("Below the best baseline: Zorro (RoBERTa-base (published)).")
    assert verdict([], {}) == "Nothing was measured."


def test_two_models_are_compared_and_overlaps_are_said():
    text = page(two())
    assert "On Zorro bert-base-uncased is best; on RTE mine/3 is best." in text
    assert "On CoLA the best is not told apart from the next." in text
    assert "<b>85.3\u00a0%</b>" in text and "<b>70.2\u00a0%</b><small>" not in text


def test_a_model_that_answered_an_easier_question_is_shown_and_not_ranked():
    first, second = made.of_two()[:2]
    easier = [dataclasses.replace(first, details={"not_comparable": ["bert-base-uncased"]}), second]
    text = page(dataclasses.replace(two(), outcomes=easier))
    assert "not ranked: see the set" in text and "is best on" not in text and "On Zorro" not in text
    assert "<b>85.3\u00a0%</b><small>" not in text


def test_the_difference_to_the_champion_decides_where_it_was_measured():
    one = made.intrinsic({MODEL: 3.608, CHAMPION: 3.622})
    assert "not told apart from the champion before" in verdict([one], {})
    surer = {"difference_to_champion": {"value": -0.014, "n": 9, "low": -0.02, "high": -0.008}}
    assert verdict([dataclasses.replace(one, details=surer)], {}).startswith("Better than the champion before by 0.014")


@calm
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["higher", "lower"]))
def test_better_and_worse_are_opposites_and_overlap_is_neither(a, b, around_a, around_b, better):
    one, other = Figure(a, 9, a - around_a, a + around_a), Figure(b, 9, b - around_b, b + around_b)
    metric = Metric("x", better=better)
    opposite = {"better": "worse", "worse": "better", "even": "even"}
    assert against(other, one, metric) == opposite[against(one, other, metric)]
    if abs(a - b) < around_a:
        assert against(one, other, metric) == "even"


def test_what_has_no_direction_or_no_number_is_not_compared():
    nan, one = Figure(math.nan, 3), Figure(1.0, 3)
    assert against(nan, one, made.NATS) == against(one, nan, made.NATS) == ""
    assert against(one, one, Metric("length", better="")) == ""


def test_gaps_are_in_points_or_in_the_metrics_unit():
    assert gap(Figure(0.702, 1), Figure(0.5, 1), made.PAIRS) == "20.2 points"
    assert gap(Figure(3.0, 1), Figure(5.5, 1), made.NATS) == "2.500 nats"
    assert gap(Figure(1.0, 1), Figure(1.5, 1), Metric("", "bits per byte, x", "lower")) == "0.500 bits per byte"


def test_exposure_is_a_sentence_or_says_why_not():
    assert exposed(Exposure(400, 300, 2), ()).startswith("Of 300 examples with 13 words or more, 2 share 13 words in")
    assert "1 shares" in exposed(Exposure(400, 300, 1), ()) and "none shares" in exposed(Exposure(4, 3, 0), ())
    assert "(100 shorter ones are not looked for)" in exposed(Exposure(400, 300, 2), ())
    assert "None of its 4 examples" in exposed(Exposure(4, 0, 0), ())
    assert exposed(None, ("It was not measured: no corpus.",)) == "It was not measured: no corpus."
    assert "not measured" in exposed(None, ())


def test_counts_remarks_and_meanings_are_there():
    text = page(full())
    for said in ("too long <b>3</b>", "Ties count as wrong.", "e to the cross-entropy", "maskmill run quickstart"):
        assert said in text
    assert text.count('class="plot square"') == 4  # two outcomes, two models


# Whatever names and texts are.


@calm
@given(st.one_of(st.text(max_size=30), st.sampled_from(WILD)), st.sampled_from(WILD))
def test_all_text_is_escaped(name, text):
    first, second = f"a{name}", f"b{text}"
    metric = Metric(text, name, "higher", text)
    one = dataclasses.replace(
        made.pairs({first: 0.7, second: 0.6, BASELINE + name: 0.5}, 3),
        title=text,
        remarks=(text,),
        counts={name: 3},
        metrics={"accuracy": metric, "ties": metric},
    )
    guess = [{"token": text, "probability": 0.5}]
    wild = Report(
        name,
        [Examined(first, first, {text: text, name: name}), Examined(second, second)],
        [one],
        curve({text: Figure(6.0, 10)}),
        {first: [{"text": text, "masks": [guess]}]},
        [text],
        {text: text, name: "javascript:alert(1)"},
        {text: text},
    )
    shown = page(wild)
    shown.encode()
    read = parsed(shown)
    assert all(map(TAGS.fullmatch, read.tags)) and read.attributes <= ATTRIBUTES
    assert all(0 <= width <= 100 for width in read.widths)
    assert 'href="javascript' not in shown.lower()
    if text:
        assert UNSHOWN.sub("\ufffd", text).replace("\r\n", "\n") in "".join(read.texts).replace("\r\n", "\n")
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(markdown(wild))
    flat = [*tokens, *(inner for token in tokens for inner in token.children or [])]
    assert all(MARKS.fullmatch(token.type) for token in flat)


def test_the_page_loads_nothing():
    text = page(dataclasses.replace(full(), links={}))
    assert not re.search(r"<script|url\(|https?:|@import|src=|href=", text)


def test_only_addresses_that_are_harmless_become_links():
    links = {"a": "https://x.y", "b": "data:text/html,x", "c": "README.md", "d": "//evil", "e": "JavaScript:1"}
    assert re.findall(r'href="([^"]*)"', page(dataclasses.replace(full(), links=links))) == ["https://x.y", "README.md"]


# The same figures, also after JSON.


@pytest.mark.parametrize("made_report", [full(), two()], ids=["one", "two"])
def test_the_same_outcomes_are_the_same_page_also_after_json(made_report):
    again = [outcome_of(one) for one in json.loads(json.dumps(as_json(made_report)))["outcomes"]]
    # JSON has no infinity: what is no number stays one, and is shown as "–" either way
    assert page(dataclasses.replace(made_report, outcomes=again)) == page(made_report)
    json.dumps(as_json(made_report), allow_nan=False)


def test_markdown_has_a_row_for_each_set_with_baseline_and_n():
    lines = [line for line in markdown(full()).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(made.of_one())
    assert all(len(line.replace("\\|", "").split("|")) == 7 for line in lines)
    assert "bag of words 0.090 | 527 examples" in lines[5]


def test_a_report_of_nothing_is_a_page():
    assert "Nothing was measured." in page(report([])) and "Nothing was measured" in markdown(report([]))


def test_a_metric_of_missing_figures_only_is_shown_as_missing():
    nothing = Figure(math.nan, 0)
    one = Outcome(
        "x", "cloze", "X", "accuracy", {"accuracy": made.RIGHT}, {"accuracy": {MODEL: nothing, made.CHANCE: nothing}}
    )
    assert "–" in page(report([one])) and "no figure" in page(report([one]))
