"""Progress without a terminal is plain lines, and one at the end. pytest tests/tasks/test_progress.py"""

import os
import subprocess
import sys
from pathlib import Path

from tasks import progress as module
from tasks.progress import progress, say

ROOT = Path(__file__).parents[2]


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


def test_words_that_nobody_can_take_end_no_run():
    for stream in (os.pipe(), (None, os.open("/dev/full", os.O_WRONLY))):
        if stream[0] is not None:
            os.close(stream[0])
        code = "from tasks.progress import say; say('one'); say('two'); print('done')"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=stream[1])
        os.close(stream[1])
        assert (done.returncode, done.stdout) == (0, b"done\n")
