"""Progress without a terminal is plain lines, and one at the end. pytest tests/tasks/test_progress.py"""

from tasks import progress as module
from tasks.progress import progress, say


def test_lines_say_how_far_and_how_long_is_left(capsys, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 0.0)
    with progress("shards", total=100, unit="documents") as bar:
        bar.advance(25)
        bar.note("loss 4.21")
        say("something worth saying")
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith("shards: 25 of 100 documents, ") and error[0].endswith(" left")
    assert error[1].endswith("loss 4.21") and error[2] == "something worth saying"
    assert error[-1].startswith("shards: 25 documents in ")


def test_a_quick_stage_is_one_line(capsys):
    with progress("corpus", unit="documents") as bar:
        bar.advance(3)
    assert capsys.readouterr().err == "corpus: 3 documents in 0.0 s\n"
