"""The spool's reader hands on every line once, in order, whatever becomes of the file and of who takes the lines."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.spool import Spool

line = '{{"step": {}, "timestamp_ms": 1, "metrics": {{}}}}\n'.format


def replace(path, text):
    new = path.with_name("new")
    new.write_text(text)
    os.replace(new, path)


def test_the_spool_is_read_again_from_the_start_when_the_trainer_replaced_it(tmp_path):
    path, got = tmp_path / "spool", []
    spool = Spool(path, got.extend)
    spool.ship()
    path.write_text(line(1) + line(2) + line(3)[:9])
    spool.ship()
    replace(path, line(1) + line(2) + line(3) + line(4))
    spool.ship()
    assert [record["step"] for record in got] == [1, 2, 3, 4]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.booleans(), st.integers(0, 40)), max_size=8))
def test_each_step_is_handed_on_once_and_in_order(tmp_path_factory, resumes):
    path, got, away = tmp_path_factory.mktemp("spool") / "spool", [], [False]

    def take(records):
        if away[0]:
            raise OSError("no room")
        got.extend(records)

    spool, kept = Spool(path, take), ""
    for back, more, fails, torn in resumes:  # a resume cuts back, then lines come, the last of them half written
        steps = kept.count("\n")
        kept = "".join(kept.splitlines(keepends=True)[: max(0, steps - back)])
        replace(path, kept)
        away[0] = fails
        for step in range(kept.count("\n") + 1, kept.count("\n") + 1 + more):
            kept += line(step)
            path.write_text(kept + line(step + 1)[:torn])
            spool.ship()
    away[0] = False
    spool.ship()
    assert [record["step"] for record in got] == list(range(1, len(got) + 1))
    assert len(got) >= kept.count("\n")


@pytest.mark.parametrize(
    "bad", [b"[]", b"3", b'{"step": "1"}', b'{"step": 1, "timestamp_ms": 2, "metrics": [1]}', b"[" * 5000]
)
def test_a_line_that_is_no_record_is_not_handed_on(tmp_path, bad):
    got: list = []
    (tmp_path / "spool").write_bytes(line(1).encode() + bad + b"\n")
    Spool(tmp_path / "spool", got.extend).ship()
    assert [record["step"] for record in got] == [1]
