"""maskmill promote, maskmill rollback. pytest tests/flows/test_promotion_commands.py"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import promotion_commands, terminal
from flows.cli import main  # noqa: F401  (registers the commands)
from tasks import evidence, gate, promotion
from tasks.artifacts import Store
from tasks.errors import UsageError
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.gate import Decision, Part
from tasks.promotion import Promotion
from tasks.results import CHAMPION, MODEL
from tasks.versions import Version
from tests.tasks import small_model

VERSION = Version("mine", 3, (), {}, "")
PARTS = (Part("by source", "mail", 2000, 0.2, True, True), Part("by source", "rare", 10, 9.0, False, False))
REFUSED = Decision(False, gate.WORSE_IN_PART, "3.9 nats, but", parts=PARTS)


@pytest.mark.parametrize(("champion", "code"), [(3, 0), (2, 2)])
def test_the_exit_status_says_whether_it_is_champion(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, champion: int, code: int
) -> None:
    monkeypatch.setenv("MASKMILL_HOME", str(tmp_path))
    asked: list[Any] = []

    def promote(*arguments: Any) -> Promotion:
        asked.append(arguments[:4])
        return Promotion(VERSION, replace(REFUSED, kind=gate.FORCED) if champion == 3 else REFUSED, champion, 2)

    monkeypatch.setattr(promotion, "promote", promote)
    done = CliRunner().invoke(terminal.app, ["promote", "mine/3", "--force", "--reason", "why not"])
    assert done.exit_code == code and asked == [("mine/3", tmp_path, True, "why not")]
    assert "+0.200 nats by source, mail (n 2,000)  worse than allowed" in done.output and "rare" not in done.output
    assert f"Champion is version {champion}." in done.output
    assert ("maskmill rollback mine" in done.output) == (code == 0)
    done = CliRunner().invoke(terminal.app, ["promote", "mine/3", "--json"])
    assert done.exit_code == code
    page = json.loads(done.output)
    assert page["promoted"] == (code == 0) and page["decision"]["parts"][0]["name"] == "mail"


def test_the_commands_are_there_with_an_example() -> None:
    for command in ("promote", "rollback"):
        shown = CliRunner().invoke(terminal.app, [command, "--help"]).output
        assert f"Example: maskmill {command}" in shown and "--reason" in shown


def test_two_versions_are_scored_side_by_side_on_the_challengers_test_set(tmp_path: Path) -> None:
    store = Store(tmp_path)
    corpus = small_model.corpus(store)
    words = small_model.vocabulary(store, corpus)
    rows = small_model.shards(store, words)
    old, new = (small_model.pretrain(store, words, rows, seed=seed, noise=0.05) for seed in (0, 1))
    config = EvaluateConfig(rates=(), sentences=(), max_rows=6, threads=1)
    config = replace(config, pseudo_likelihood=replace(config.pseudo_likelihood, passages=2, passage_bytes=24))
    report, _ = evaluate(config, corpus, words, rows, new, None, store)
    made = (corpus, words, rows, new, report)
    challenger = Version("mine", 2, (), {one.stage: one.digest for one in made}, "")
    champion = Version("mine", 1, (), {"pretrain": old.digest}, "")
    found = evidence.read(promotion_commands.again(store)(challenger, champion))
    assert found[CHAMPION].pretrain == old.digest
    assert found[MODEL].test == found[CHAMPION].test == report.facts["test"]["digest"]
    assert found[MODEL].nats == evidence.read(report.path(evidence.FILE))[MODEL].nats
    lost = replace(challenger, tags={**challenger.tags, "shards": "0123456789abcdef", "command": "maskmill run mine"})
    with pytest.raises(UsageError, match=r"lacks the shards 0123456789ab of version 2; make it again \(mask"):
        promotion_commands.again(store)(lost, champion)
    with pytest.raises(UsageError, match="lacks the pretrain of an unknown digest of version 1; run this where it is"):
        promotion_commands.again(store)(challenger, replace(champion, tags={}))
