"""Pictures show the numbers they are given, and fit whatever these are. pytest tests/tasks/test_charts.py"""

import math
import re

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tasks.charts import MOST_POINTS, Dot, Line, Scale, amount, dots, legend, plot, scale_of, thinned, track
from tests.tasks.test_corpus_card import HOSTILE, Reader

NUMBERS = st.floats(-1e9, 1e9)
calm = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
ANY = st.one_of(NUMBERS, st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e-300]))


@calm
@given(st.lists(st.one_of(st.none(), ANY)))
def test_a_scale_holds_every_finite_number(values):
    scale = scale_of(values)
    assert scale.low < scale.high
    for value in values:
        if value is not None and math.isfinite(value):
            assert 0 <= scale.at(value) <= 1
            assert scale.low <= value <= scale.high


@calm
@given(NUMBERS, st.floats(1e-6, 1e9))
@example(0.0, 0.3)  # a third of it is a little less than 0.1
def test_ticks_are_a_few_and_lie_on_the_scale(low, width):
    scale = Scale(low, low + width)
    assume(scale.high - scale.low > 1e-9 * abs(low))
    assert 2 <= len(scale.ticks) <= 8
    assert all(low - 0.01 * width <= tick <= low + 1.01 * width for tick in scale.ticks)


@calm
@given(st.lists(st.tuples(ANY, ANY), max_size=30), st.dictionaries(st.text(max_size=5), NUMBERS, max_size=4))
def test_a_plot_is_well_formed_and_draws_nothing_outside(points, levels):
    flat = [value for point in points for value in point]
    scale = scale_of([*flat, *levels.values()])
    drawn = plot([Line("loss", points, "s0", True)], levels, (scale, scale), ("tokens", "nats"))
    Reader(drawn)
    assert "nan" not in drawn.replace("nats", "") and "inf" not in drawn
    for across, down in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", drawn):
        assert 0 <= float(across) <= 100 and 0 <= float(down) <= 100


@calm
@given(st.lists(st.integers(), max_size=2 * MOST_POINTS + 5))
def test_a_long_line_keeps_its_ends(points):
    few = thinned([(point, point) for point in points])
    assert len(few) <= MOST_POINTS + 1
    if points:
        assert few[0][0] == points[0] and few[-1][0] == points[-1]


def test_a_mark_stands_where_its_number_is_and_its_interval_around_it():
    drawn = track([Dot("0", "x", 0.5, 0.25, 0.75)], Scale(0, 1))
    assert 'class="span m0" style="left:25.00%;width:50.00%"' in drawn
    assert 'class="mark m0" style="left:50.00%"' in drawn


@calm
@given(ANY, ANY, ANY)
def test_what_is_no_number_has_no_mark(value, low, high):
    drawn = track([Dot("b", "x", value, low, high)], Scale(-1e9, 1e9))
    assert ("mark" in drawn) == math.isfinite(value)
    assert all(0 <= float(place) <= 100 for place in re.findall(r"left:([\d.-]+)%", drawn))


def test_level_lines_that_lie_together_share_their_words():
    scale = Scale(0.0, 10.0)
    drawn = plot([], {"unigram 6.66": 6.66, "untrained 6.67": 6.67, "bigram 5.00": 5.0}, (scale, scale), ("x", "y"))
    assert "untrained 6.67 · unigram 6.66" in drawn and drawn.count('class="said"') == 2
    assert drawn.count('class="level"') == 3


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_stays_a_name(text):
    scale = Scale(0.0, 10.0)
    drawn = plot([Line(text, [(1, 2), (2, 3)], "s0", True, [text])], {text: 5.0}, (scale, scale), (text, text))
    drawn += track([Dot("0", text, 1.0)], scale)
    read = Reader(drawn)
    assert read.tags <= {"div", "svg", "line", "path", "title", "span", "i"}
    assert "onerror" not in read.attributes


def test_dots_have_an_axis_and_no_dots_have_none():
    assert 'class="axis"' in dots([("a", Dot("0", "a", 1.0), "1")], Scale(0, 2), "{:g}")
    assert dots([], Scale(0, 2), "{:g}") == ""
    assert "&lt;" not in legend([("0", "a")])


def test_amounts_are_short():
    assert [amount(n) for n in (0, 500, 2_000, 4_500_000, 1e9)] == ["0", "500", "2k", "4.5M", "1G"]
