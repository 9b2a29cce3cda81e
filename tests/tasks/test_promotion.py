"""Promotion in a real registry: what is written, what a person may do, one that is overtaken."""

import json
from contextlib import nullcontext

import pytest

from tasks import board, promotion, tracking
from tasks.board import Board, smoke
from tasks.errors import DataError, UsageError
from tasks.promotion import promote, rollback
from tasks.results import CHAMPION, MODEL
from tests.tasks import small_model
from tests.tasks.calm_mlflow import calm as calm
from tests.tasks.shelf import answers as answers
from tests.tasks.shelf import shelf as shelf


def test_a_better_version_is_champion_and_all_is_written_down(shelf):
    one, two = shelf.add("better", 4.0), shelf.add("better", 3.9)
    assert promote(f"better/{one}", shelf.home).promoted
    done = promote(f"better/{two}", shelf.home)
    assert done.promoted and (done.champion, done.before, done.by) == (2, 1, "gate")
    assert shelf.aliases("better") == {"champion": 2, "previous": 1}
    tags = shelf.tags("better", 2)
    assert tags["gate"] == "champion" and tags["verdict"].startswith("CHAMPION: 3.900 nats, 0.100 below version 1")
    assert tags["delta"] == "-0.100 nats" and tags["against"] == "version 1" and tags["by"] == "gate"
    assert all(len(tags[name]) <= 16 for name in ("gate", "delta", "against", "by"))
    assert shelf.first_line("better", 2) == f"v2 {tags['verdict']}"
    assert shelf.client.get_model_version("better", "2").description.endswith("# The card\n")
    assert shelf.tags("better", 1)["gate"] == "was champion"
    assert shelf.first_line("better", 1) == "v1 was CHAMPION until v2: first version, 4.000 nats"
    report = shelf.report("better", 2)
    assert report["against"] == 1 and report["test"] == "a" * 64 and report["by"] == "gate"
    assert report["low"] < report["difference"] < report["high"] < 0 and report["rule"]["tolerance"] == 0.1


def test_a_refused_version_keeps_its_reports(shelf):
    promote(f"worse/{shelf.add('worse', 4.0)}", shelf.home)
    two = shelf.add("worse", 4.1)
    for _ in range(2):
        done = promote(f"worse/{two}", shelf.home)
        assert not done.promoted and done.champion == 1 and done.decision.kind == "not better"
    assert shelf.aliases("worse") == {"champion": 1}
    assert shelf.tags("worse", two)["gate"] == "not better"
    assert shelf.first_line("worse", two).startswith("v2 not better: 4.100 nats, 0.100 above version 1")
    report = shelf.report("worse", two)
    assert report["kind"] == "not better" and len(report["earlier"]) == 1
    assert "earlier" not in report["earlier"][0] and shelf.tags("worse", 1)["gate"] == "champion"


@pytest.mark.slow
def test_the_rule_is_the_one_that_the_version_was_registered_with(shelf):
    promote(f"part/{shelf.add('part', 4.0, classes={'novels': 0.0, 'mail': 0.0})}", shelf.home)
    two = shelf.add("part", 3.8, classes={"novels": -0.2, "mail": 0.35})
    refused = promote(f"part/{two}", shelf.home)
    assert refused.decision.kind == "worse in part" and "by source, mail" in refused.decision.reason
    shelf.client.set_model_version_tag("part", str(two), "rule", json.dumps({"tolerance": 0.5, "class_tokens": 1000}))
    assert promote(f"part/{two}", shelf.home).promoted


@pytest.mark.slow
def test_who_is_champion_already_stays_it_and_nothing_is_written(shelf):
    promote(f"again/{shelf.add('again', 4.0)}", shelf.home)
    before = shelf.tags("again", 1)
    assert promote("again/1", shelf.home).promoted and shelf.tags("again", 1) == before


def test_by_force_a_person_is_asked_for_the_reason_and_it_is_kept(shelf):
    promote(f"force/{shelf.add('force', 4.0)}", shelf.home)
    two = shelf.add("force", 4.5)
    with pytest.raises(UsageError, match="--force needs --reason"):
        promote(f"force/{two}", shelf.home, force=True, why=" ")
    done = promote(f"force/{two}", shelf.home, force=True, why="it knows the new names")
    assert done.promoted and done.by == "person" and shelf.aliases("force") == {"champion": 2, "previous": 1}
    tags, report = shelf.tags("force", two), shelf.report("force", two)
    assert tags["by"] == "person" and tags["verdict"].startswith("CHAMPION: by force, it knows the new names")
    assert "the gate: not better" in tags["verdict"]
    assert (report["by"], report["why"]) == ("person", "it knows the new names") and report["difference"] > 0
    assert shelf.tags("force", 1)["gate"] == "was champion"


def test_a_rollback_goes_back_one_champion_at_a_time_and_stays(shelf):
    for nats in (4.0, 3.9, 3.8):
        promote(f"back/{shelf.add('back', nats)}", shelf.home)
    done = rollback("back", shelf.home, "names come out wrong")
    assert (done.champion, done.before) == (2, 3)
    assert shelf.aliases("back") == {"champion": 2, "previous": 1}
    assert shelf.first_line("back", 3) == "v3 rolled back: to version 2: names come out wrong"
    assert shelf.first_line("back", 2).startswith("v2 CHAMPION: again, after version 3")
    assert shelf.report("back", 3)["why"] == "names come out wrong"
    # 3 would beat 4 and 2, but it does not stand any more.
    assert promote(f"back/{shelf.add('back', 3.85)}", shelf.home).promoted
    assert shelf.aliases("back") == {"champion": 4, "previous": 2}
    assert rollback("back", shelf.home).champion == 2 and rollback("back", shelf.home).champion == 1
    with pytest.raises(UsageError, match="no champion before version 1"):
        rollback("back", shelf.home)


def test_the_gates_words_for_what_is_not_there(shelf):
    with pytest.raises(UsageError, match="has no @champion"):
        shelf.add("empty", 4.0)
        rollback("empty", shelf.home)
    with pytest.raises(UsageError, match="no version 9"):
        promote("empty/9", shelf.home)
    with pytest.raises(UsageError, match="no model 'nobody'"):
        promote("nobody/1", shelf.home)


def test_a_version_of_before_the_gate_stays_champion_until_a_person_says_otherwise(shelf):
    old = shelf.add("old", None)
    shelf.client.set_registered_model_alias("old", "champion", str(old))
    shelf.client.set_model_version_tag("old", str(old), "verdict", "CHAMPION: first version, 4.000 nats")
    two = shelf.add("old", 1.0)
    done = promote(f"old/{two}", shelf.home)
    assert not done.promoted and done.decision.reason == "version 1 was registered without scores"
    assert shelf.first_line("old", two) == "v2 not compared: version 1 was registered without scores"
    assert promote(f"old/{two}", shelf.home, force=True, why="it is far better").promoted
    assert (
        promote(f"old/{shelf.add('old', None)}", shelf.home).decision.reason
        == "version 3 was registered without scores"
    )


@pytest.mark.slow
def test_on_another_test_set_both_are_scored_again_or_the_command_says_what_is_missing(shelf, tmp_path):
    promote(f"again2/{shelf.add('again2', 4.0)}", shelf.home)
    two = shelf.add("again2", 3.0, test="b" * 64)
    assert "another test set" in promote(f"again2/{two}", shelf.home).decision.reason

    def lost(challenger, champion):
        raise UsageError("The store lacks the shards abc.")

    with pytest.raises(UsageError, match=r"again2 version 2: .* on another test set\. The store lacks"):
        promote(f"again2/{two}", shelf.home, rescore=lost)
    asked = []

    def rescore(challenger, champion):
        asked.append((challenger.version, champion.version))
        both = {MODEL: challenger.tags["pretrain"], CHAMPION: champion.tags["pretrain"]}
        small_model.scored(tmp_path / "scores.arrow", {MODEL: 3.0, CHAMPION: 3.2}, both, "b" * 64)
        return tmp_path / "scores.arrow"

    done = promote(f"again2/{two}", shelf.home, rescore=rescore)
    assert done.promoted and asked == [(2, 1)] and done.decision.difference == pytest.approx(-0.2)
    assert promote(f"again2/{shelf.add('again2', 2.0, test='b' * 64)}", shelf.home, rescore=lost).promoted  # kept


def test_evidence_that_was_tampered_with_is_refused_by_name(shelf):
    promote(f"forged/{shelf.add('forged', 4.0)}", shelf.home)
    two = shelf.add("forged", 3.0)
    logged = shelf.client.get_model_version("forged", str(two)).source.removeprefix("models:/")
    (scores,) = tracking.artifact_root(shelf.home).rglob(f"{logged}/**/scores.arrow")
    data = bytearray(scores.read_bytes())
    data[-400] ^= 1
    scores.write_bytes(data)
    done = promote(f"forged/{two}", shelf.home)
    assert not done.promoted and "scores.arrow of forged version 2 is not the file" in done.decision.reason
    scores.unlink()
    assert "cannot be loaded" in promote(f"forged/{two}", shelf.home).decision.reason


def test_a_model_that_does_not_answer_is_refused(shelf, monkeypatch):
    promote(f"mute/{shelf.add('mute', 4.0)}", shelf.home)
    two = shelf.add("mute", 3.0)
    monkeypatch.setattr(
        board, "smoke", lambda spec, home, modality: "model.safetensors is not the file that was registered"
    )
    done = promote(f"mute/{two}", shelf.home)
    assert not done.promoted and done.decision.kind == "no answer" and shelf.aliases("mute") == {"champion": 1}
    assert "model.safetensors" in shelf.tags("mute", two)["verdict"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([[{"token": "a", "probability": 0.5}] * 3], ""),
        ([[{"token": "a", "probability": float("nan")}] * 3], "not finite"),
        ([[]], "not finite"),
        (DataError("weights are gone"), "weights are gone"),
        (RuntimeError("size mismatch"), "cannot fill a mask: size mismatch"),
    ],
)
def test_smoke_is_a_mask_filled_with_finite_probabilities(monkeypatch, tmp_path, answer, says):
    class Loaded:
        def predict(self, texts, params):
            if isinstance(answer, Exception):
                raise answer
            return [answer]

    monkeypatch.setattr(board, "load_model", lambda spec, home: Loaded())
    found = smoke("any/1", tmp_path)
    assert says in found and bool(found) == bool(says)


@pytest.mark.slow
def test_a_champion_that_a_person_chose_in_the_ui_is_not_undone(shelf):
    for nats in (4.0, 3.0):
        promote(f"hand/{shelf.add('hand', nats)}", shelf.home)
    shelf.client.set_registered_model_alias("hand", "champion", "1")
    assert not promote(f"hand/{shelf.add('hand', 4.5)}", shelf.home).promoted
    assert shelf.aliases("hand")["champion"] == 1
    assert shelf.tags("hand", 1)["verdict"].startswith("CHAMPION by hand; was CHAMPION until v2")
    assert shelf.tags("hand", 2)["verdict"].startswith("was CHAMPION until v1")


def test_without_a_run_the_report_has_no_place_and_the_promotion_goes_on(shelf, capsys):
    number = shelf.add("runless", 4.0, in_run=False)
    assert promote(f"runless/{number}", shelf.home).promoted
    assert "takes no gate_report.json" in capsys.readouterr().err


@pytest.mark.parametrize(("late", "early"), [(3.0, 2.0), (2.0, 3.0)])
def test_a_promotion_that_was_overtaken_before_it_set_the_alias_looks_again(shelf, monkeypatch, late, early):
    """Without a lock: the whole of one promotion happens just before the other one sets the alias."""
    name = f"race-{late:.0f}"
    promote(f"{name}/{shelf.add(name, 4.0)}", shelf.home)
    slow, fast = shelf.add(name, late), shelf.add(name, early)
    monkeypatch.setattr(promotion, "alone", lambda home: nullcontext())
    move, held = Board._move, []

    def overtaken(self, version, before):
        if not held:
            held.append(version)
            promote(f"{name}/{fast}", shelf.home)
        move(self, version, before)

    monkeypatch.setattr(Board, "_move", overtaken)
    promote(f"{name}/{slow}", shelf.home)
    best, other = (slow, fast) if late < early else (fast, slow)
    assert held == [slow] and shelf.aliases(name) == {"champion": best, "previous": 1}
    assert shelf.tags(name, best)["gate"] == "champion" and shelf.tags(name, other)["gate"] != "champion"
    assert shelf.first_line(name, best).startswith(f"v{best} CHAMPION: ")
    assert not shelf.first_line(name, other).startswith(f"v{other} CHAMPION")


def test_a_version_that_another_promotion_found_and_crowned_is_told_so(shelf, monkeypatch):
    promote(f"found/{shelf.add('found', 4.0)}", shelf.home)
    slow, fast = shelf.add("found", 2.0), shelf.add("found", 3.0)
    monkeypatch.setattr(promotion, "alone", lambda home: nullcontext())
    stand = Board.stand

    def found(self, version):
        stand(self, version)
        if version == slow:
            assert not promote(f"found/{fast}", shelf.home).promoted

    monkeypatch.setattr(Board, "stand", found)
    done = promote(f"found/{slow}", shelf.home)
    assert done.promoted and done.decision.kind == "better" and done.decision.difference == pytest.approx(-2.0)
    assert shelf.tags("found", slow)["gate"] == "champion"
