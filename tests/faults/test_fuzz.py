"""A few hundred cases of each cheap parser; all parsers, and 100,000 cases of each: python -m tests.faults.fuzz"""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import DataError
from tests.faults import fuzz, fuzz_inputs, fuzz_sources, fuzz_state, fuzz_stored
from tests.faults.fuzz import Case, Parser, Silent

STORED = ("manifest", "manifest-sealed", "receipt-sealed", "shard", "spool", "ledger", "scores")
GIVEN = ("records", "csv", "parquet", "arrow-file", "gzip", "cloze", "labelled-csv", "treebank")
KNOWN = fuzz_stored.PARSERS | fuzz_state.PARSERS | fuzz_inputs.PARSERS | fuzz_sources.PARSERS


@pytest.mark.parametrize("name", STORED + GIVEN)
def test_nothing_but_documented_errors_comes_out(name: str) -> None:
    tally = fuzz.run(name, KNOWN[name], 200, seed=1)
    assert tally.cases == 200 and not tally.wrong, [f"{one.kind}: {one.what}" for one in tally.findings]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(fuzz.parsers()))
def test_thousands_of_cases_of_every_parser(name: str) -> None:
    tally = fuzz.run(name, fuzz.parsers()[name], 3000, seed=2)
    assert not tally.wrong, [f"{one.kind}: {one.what}" for one in tally.findings]


def parser(read: Any) -> Parser:
    return Parser([b"whole"], lambda case: None if case.data == b"whole" else read(case))


def refuses(case: Case) -> None:
    raise DataError("it is damaged")


def crashes(case: Case) -> None:
    raise KeyError("x")


def says_nothing(case: Case) -> None:
    raise DataError(" ")


def accepts(case: Case) -> None:
    raise Silent("other bytes were taken")


def aborts(case: Case) -> None:
    if case.data[:1] != b"w":
        os.abort()


def fills_memory(case: Case) -> None:
    bytearray(4 << 30)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (refuses, ""),
        (crashes, "crash"),
        (says_nothing, "crash"),
        (accepts, "silent"),
        (aborts, "abort"),
        (fills_memory, "memory"),
    ],
)
def test_the_harness_sees_what_it_is_there_for(read: Any, kind: str, tmp_path: Path) -> None:
    tally = fuzz.fuzz("a", parser(read), 60, 0, tmp_path)
    found = {name for name in fuzz.FINDINGS if tally.outcomes[name]}
    assert found == ({kind} if kind else set()) and tally.cases <= 60
    for finding in tally.findings:  # its bytes alone repeat it
        assert finding.data != b"whole" and finding.kind == kind


def test_a_case_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "PATIENCE", 0.3)
    monkeypatch.setattr(fuzz, "FATAL", 1)
    tally = fuzz.fuzz("a", parser(lambda case: time.sleep(60)), 20, 0, tmp_path)
    assert tally.outcomes["hang"] == 1 and len(tally.findings) == 1


def test_the_same_seed_gives_the_same_cases() -> None:
    first, second, other = (
        [case.data for case, _ in zip(fuzz.cases(seed, "a", [b'{"a": [1, 2]}'], None, "json", (), 0), range(50))]
        for seed in (1, 1, 2)
    )
    assert first == second != other
