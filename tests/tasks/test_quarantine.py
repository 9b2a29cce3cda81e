"""python -m pytest tests/tasks/test_quarantine.py"""

import json
from pathlib import Path

import pytest

from tasks import quarantine
from tasks.quarantine import Faults, lines
from tasks.streams import Reject


def test_of_a_reason_so_many_are_listed_and_the_others_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "LISTED", 3)
    path = tmp_path / "quarantine.jsonl"
    with open(path, "wb") as file:
        file.write(b"{}\n")
        faults = Faults(file)
        for number in range(5):
            faults.add(Reject("broken_json", number, 2, number + 1, "no"))
        faults.add(Reject("null"))
        place = faults.close()
        file.write(b"{}\n")
    found = list(lines(path, place, "a.jsonl"))
    assert [(one["reason"], one["line"]) for one in found] == [
        ("broken_json", 1), ("broken_json", 2), ("broken_json", 3), ("null", None), ("broken_json", None),
    ]  # fmt: skip
    assert found[-1]["detail"].startswith("and 2 more") and {one["source"] for one in found} == {"a.jsonl"}
    assert json.loads(path.read_text().splitlines()[1])["offset"] == 0 and list(lines(path, [0, 0], "b")) == []
