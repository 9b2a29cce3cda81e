import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from prefect.exceptions import CrashedRun
from typer.testing import CliRunner

from flows import cli, ledger, terminal
from tasks import errors

ROOT = Path(__file__).parents[2]
HEAVY = ("prefect", "torch", "mlflow", "transformers", "datasets", "tokenizers")
runner = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MASKMILL_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASKMILL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cli.environment, "settle", lambda home: None)  # it would leave its marks on later tests
    return tmp_path / "home"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("A text of a few words. " * 10)
    return tmp_path / "texts"


def said(arguments: list[str], code: int) -> str:
    result = runner.invoke(cli.terminal.app, arguments)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "tiny", "--source", "TEXTS"], ["verify"], ["runs"]])
def test_light_commands_import_nothing_heavy(arguments: list[str], texts: Path) -> None:
    program = f"""
import sys
from flows import cli
sys.argv = ["maskmill", *{arguments!r}]
try:
    cli.main()
except SystemExit as exit:
    assert not exit.code, exit.code
print("HEAVY", sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r})))
""".replace("TEXTS", str(texts))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("HEAVY []\n")


@pytest.mark.parametrize("command", ["run", "plan", "profile", "verify", "predict", "compare", "serve", "runs", "ui"])
def test_every_command_shows_an_example(command: str) -> None:
    assert f"Example: maskmill {command}" in said([command, "--help"], 0)


def test_the_help_documents_every_exit_status() -> None:
    text = said(["--help"], 0)
    for code, meaning in errors.EXIT_CODES.items():
        assert f"{code} {meaning}" in text


@pytest.mark.parametrize("kind", [errors.MaskmillError, *errors.MaskmillError.__subclasses__()])
def test_an_error_is_one_sentence_and_its_exit_status(
    kind: type[errors.MaskmillError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise kind("shard 3 is damaged; run again.")

    monkeypatch.setattr(ledger, "read", fail)
    text = said(["runs"], kind.exit_code)
    assert text.removeprefix("Error: ") == "shard 3 is damaged; run again."


def test_an_internal_error_hides_its_traceback_until_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(ledger, "read", fail)
    monkeypatch.setattr(terminal, "debugging", False)
    assert said(["runs"], 1) == "Internal error: ZeroDivisionError: odd. Run again with --debug for the traceback."
    assert "Traceback" in said(["runs", "--debug"], 1)


def test_ctrl_c_says_that_the_same_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "read", fail)
    assert said(["runs"], 75) == terminal.AGAIN


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "quikstart"], "Did you mean quickstart?"),
        (["run", "tiny", "--set", "pretrain.stps=3"], "did you mean pretrain.steps?"),
        (["run", "tiny", "--source", "/no/such/folder"], "/no/such/folder does not exist"),
        (["plan", "tiny", "--from", "shard"], "There is no stage 'shard'; the stages are corpus, vocabulary"),
        (["verify", "shard"], "There is no stage 'shard'"),
        (["profile", "quikstart"], "Did you mean quickstart?"),
        (["profile", "tiny", "--set", "pretrain.stps=3"], "did you mean pretrain.steps?"),
        (["profile", "tiny", "--source", "/no/such/folder"], "/no/such/folder does not exist"),
        (["profile", "tiny", "--steps", "0"], "Invalid value for '--steps'"),
        (["nonsense"], "No such command"),
        (["predict", "A [MASK]."], "start with: maskmill run quickstart"),
    ],
)
def test_wrong_use_is_refused_before_anything_starts(arguments: list[str], says: str, home: Path) -> None:
    assert says in said(arguments, 2)
    assert not (home / "prefect").exists()


def test_a_prefect_server_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch, texts: Path) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert "http://127.0.0.1:9/api (PREFECT_API_URL)" in said(["run", "tiny", "--source", str(texts)], 2)


def test_an_mlflow_server_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch, texts: Path, home: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    text = said(["run", "tiny", "--source", str(texts)], 2)
    assert "No MLflow server answers at http://127.0.0.1:9 (MLFLOW_TRACKING_URI)" in text and "secret" not in text
    assert not (home / "prefect").exists()


def test_plan_is_a_table_for_people_and_json_for_programs(texts: Path) -> None:
    assert "not made yet" in said(["plan", "tiny", "--source", str(texts)], 0)
    page = json.loads(runner.invoke(cli.terminal.app, ["plan", "tiny", "--source", str(texts), "--json"]).stdout)
    assert [it["stage"] for it in page] == list(ledger.STAGES)


def test_verify_names_what_is_damaged(home: Path) -> None:
    from tasks.artifacts import Built, Identity, Store, Workspace

    def build(workspace: Workspace) -> Built:
        (workspace.folder / "tokenizer.json").write_text("{}")
        return Built({}, {})

    store = Store(home / "store")
    manifest, _ = store.make(Identity("vocabulary", 1, {}, {}), build)
    assert "all intact: 1 vocabulary" in said(["verify"], 0)
    manifest.path("tokenizer.json").write_text("[]")  # of the same size
    assert str(manifest.folder / "tokenizer.json") in said(["verify"], 65)
    assert "1 of 1 artifacts damaged; checked: 1 vocabulary" in said(["verify", "vocabulary"], 65)
    assert "nothing is there yet" in said(["verify", "shards"], 0)
    report = json.loads(runner.invoke(cli.terminal.app, ["verify", "--json"]).stdout)
    assert len(report["findings"]) == 1 and report["artifacts"] == {"vocabulary": 1}
    assert report["damaged"] == 1


def test_runs_shows_the_state_and_the_command(home: Path) -> None:
    assert "No runs yet" in said(["runs"], 0)
    with pytest.raises(errors.DataError), ledger.record(home, "tiny", "maskmill run tiny --from shards") as recorder:
        recorder.stage("shards", "running")
        raise errors.DataError("shard 3 is damaged.")
    text = said(["runs"], 0)
    assert "failed shards" in text and "maskmill run tiny --from shards" in text and "shard 3 is damaged." in text
    (page,) = json.loads(runner.invoke(cli.terminal.app, ["runs", "--json"]).stdout)
    assert (page["state"], page["stage"], page["exit_code"]) == ("failed", "shards", 65)


def test_the_parameters_of_typer_errors_are_left_to_typer() -> None:
    with pytest.raises(typer.BadParameter), terminal.explained():
        raise typer.BadParameter("odd")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_batch_system_s_signals_are_a_ctrl_c_in_every_stage(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    monkeypatch.setattr(terminal, "app", lambda **_: signal.raise_signal(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            cli.main()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("when", ["threads", "atexit", "finalization"])
def test_a_signal_that_comes_when_all_is_done_changes_nothing(number: int, when: str, home: Path) -> None:
    """Python's own end takes a good part of a second, and its last part has no handlers: there it would be killed."""
    code = f"""
import atexit, os, sys, threading
from flows import cli
class Late:
    def __del__(self, kill=os.kill, me=os.getpid()):
        kill(me, {number:d})
def late():
    threading.main_thread().join()
    os.kill(os.getpid(), {number:d})
match {when!r}:
    case "threads": threading.Thread(target=late).start()
    case "atexit": atexit.register(os.kill, os.getpid(), {number:d})
    case "finalization": cli.late = Late()
sys.argv = ["maskmill", "runs", "--json"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 74), (errno.EROFS, 2), (errno.EACCES, 2), (errno.ENOTDIR, 2), (errno.EEXIST, 2), (errno.EIO, 74)],
)
def test_what_the_system_refuses_is_one_sentence_with_its_status(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as stopped, terminal.explained():
        raise OSError(number, os.strerror(number), "some/where")
    assert stopped.value.exit_code == code
    assert "some/where" in capsys.readouterr().err


def test_streams_that_are_closed_lead_nowhere_and_not_into_the_next_file(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys; from flows import cli; cli._stand_in(); "
        "print('one'); print('two', file=sys.stderr, flush=True); assert sys.stdin.read() == ''; "
        "here = open('file', 'wb'); subprocess.run(['sh', '-c', 'echo three; echo four >&2']); "
        "nowhere = [os.fstat(n).st_rdev == os.stat(os.devnull).st_rdev for n in range(3)]; "
        "print(here.fileno(), nowhere, file=open('said', 'w'))"
    )
    words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode == 0
    number, *rest = (tmp_path / "said").read_text().split(maxsplit=1)
    assert int(number) > 2 and rest == ["[True, True, True]\n"] and not (tmp_path / "file").read_bytes()


@pytest.mark.parametrize(("stdout", "status"), [("pipe", 0), ("/dev/full", 74)])
def test_a_stdout_that_takes_no_more_has_a_status_of_its_own(stdout: str, status: int, tmp_path: Path) -> None:
    """A reader that has seen enough is no error; a full disk is one, and neither leaves a trace at the very end."""
    words = [sys.executable, "-m", "flows.cli", "runs", "--json"]
    if stdout == "pipe":
        reads, stream = os.pipe()
        os.close(reads)
    else:
        stream = os.open(stdout, os.O_WRONLY)
    environment = os.environ | {"MASKMILL_HOME": str(tmp_path)}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(stream)
    assert done.returncode == status, done.stderr
    assert ("No space left" in done.stderr) is (status == 74) and done.stderr.count("\n") == (status == 74)


@pytest.mark.parametrize(
    ("where", "error", "away"),
    [
        (["prefect.client.base"], ValueError, True),  # a page of HTML where JSON belongs
        (["prefect.client.orchestration"], httpx.ConnectError, True),
        (["tasks.corpus"], ValueError, False),
        (["prefect.client.schemas.objects", "tasks.corpus"], ValueError, False),
        (["tasks.teachers"], httpx.ConnectError, False),  # a server of its own
        (["prefect.client.schemas.objects"], KeyError, False),  # of a stage in another process
        (["prefect.client.schemas.objects"], CrashedRun, True),
        (["tasks.corpus", "prefect.client.base"], MemoryError, False),
    ],
)
def test_a_server_that_is_away_is_told_by_who_was_called_last(
    where: list[str], error: type[Exception], away: bool, tmp_path: Path
) -> None:
    def fail() -> None:
        raise error("no JSON")

    ask = fail
    for name in reversed(where):
        space: dict[str, Any] = {"__name__": name, "further": ask}
        exec("def ask():\n    further()", space)
        ask = space["ask"]
    with pytest.raises(error) as raised:
        ask()
    if not away:
        cli._refuse_silence(raised.value, tmp_path)
        return
    with pytest.raises(errors.UnreachableError, match=rf"The Prefect server is away, .*\({error.__name__}\)"):
        cli._refuse_silence(raised.value, tmp_path)
