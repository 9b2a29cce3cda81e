"""Canaries in every place that holds a secret, then a run; nothing that was written or said shows one of them."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows import recipes, ui
from tasks import tracking
from tasks.errors import UsageError, without_secrets
from tests import servers
from tests.faults import outage

CANARIES = {
    name: f"canary{number:02d}xq{7919 * (number + 3):06x}"
    for number, name in enumerate(
        (
            "tracking",
            "postgres",
            "aws_id",
            "aws_secret",
            "aws_session",
            "hub",
            "prefect",
            "source",
            "signature",
            "token",
            "webhook",
            "serve",
            "other",
        )
    )
}
SECRET = CANARIES["prefect"]
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": CANARIES["aws_id"],
    "AWS_SECRET_ACCESS_KEY": CANARIES["aws_secret"],
    "AWS_SESSION_TOKEN": CANARIES["aws_session"],
    "HF_TOKEN": CANARIES["hub"],
    "PREFECT_API_KEY": SECRET,
    "PREFECT_SERVER_API_AUTH_STRING": f"mill:{SECRET}",
    "MASKMILL_SERVE_TOKEN": CANARIES["serve"],
    "SOME_API_KEY": CANARIES["other"],
    "MLFLOW_TRACKING_TOKEN": CANARIES["other"],
    "DB_PASSWORD": CANARIES["other"],
}


def forms(secret: str) -> list[bytes]:
    """The secret as it stands, and as an Authorization header has it."""
    users = ("admin", "mill", "mlflow", "me")
    return [secret.encode(), *(b64encode(f"{user}:{secret}".encode()).rstrip(b"=") for user in users)]


def found(data: bytes) -> list[str]:
    return [name for name, secret in CANARIES.items() if any(form in data for form in forms(secret))]


def leaks(folder: Path) -> dict[str, list[str]]:
    """File or table -> the canaries in it. Databases are read as rows, too: a page may be cut anywhere."""
    leaking = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            if names := found(path.read_bytes() + str(path).encode()):
                leaking[str(path)] = names
            if path.suffix == ".db":
                with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                    for line in database.iterdump():
                        if names := found(line.encode(errors="ignore")):
                            leaking[f"{path}: {line[:3000]}"] = names
    return leaking


def leaks_of_postgres(uri: str) -> dict[str, list[str]]:
    import psycopg

    leaking = {}
    with psycopg.connect(uri) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert len(tables) > 20
        for (table,) in tables:
            for (row,) in connection.execute(f'SELECT t::text FROM "{table}" t').fetchall():
                if names := found(row.encode()):
                    leaking[f"{table}: {row[:3000]}"] = names
    return leaking


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server with a book, which asks nobody for anything."""
    folder = tmp_path_factory.mktemp("web")
    with open(folder / "book.jsonl", "w") as file:
        for number in range(200):
            words = [f"word{(number * 7 + at * at) % 31} of the {at % 5} files" for at in range(12)]
            file.write(json.dumps({"text": f"{' '.join(words)} and text {number}."}) + "\n")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer((servers.HOST, 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{servers.HOST}:{server.server_port}/book.jsonl"
    server.shutdown()


def maskmill(home: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    own = servers.calm(ENVIRONMENT | {"MASKMILL_HOME": str(home), **environment})
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        cwd=servers.ROOT,
        env=own,
        capture_output=True,
        text=True,
        check=False,
    )


def silent(done: "subprocess.CompletedProcess[str]") -> None:
    assert not found(done.stdout.encode()) and not found(done.stderr.encode()), done.stdout + done.stderr


SIGNED = f"?X-Amz-Credential=AKIA%2F20261128&X-Amz-Signature={CANARIES['signature']}"


@pytest.mark.slow
def test_a_run_shows_no_secret_anywhere(tmp_path: Path, web: str) -> None:
    home = tmp_path / "home"
    with servers.postgres(CANARIES["postgres"]) as database:
        recipe = tmp_path / "own.yaml"  # a query in a recipe's own file, and one on the command line
        text = (servers.ROOT / "deployments" / "recipes" / "tiny.yaml").read_text()
        assert "uri: installed-docs" in text
        recipe.write_text(text.replace("uri: installed-docs", f'uri: "{web}?token={CANARIES["token"]}"'))
        words = ["run", str(recipe), "--set", "pretrain.threads=1"]
        done = maskmill(home, *words, MLFLOW_TRACKING_URI=database.uri)
        assert done.returncode == 0, done.stderr
        silent(done)
        done = maskmill(home, *words, "--source", web + SIGNED, "--debug", MLFLOW_TRACKING_URI=database.uri)
        assert done.returncode == 0, done.stderr
        silent(done)
        silent(listed := maskmill(home, "runs"))
        assert "book.jsonl?…" in listed.stdout
        for asked in (["runs", "--json"], ["lineage", "tiny"], ["lineage", "tiny", "--json"], ["gc", "--json"]):
            silent(told := maskmill(home, *asked, MLFLOW_TRACKING_URI=database.uri))
            assert told.returncode == 0, told.stderr
        for asked in ([], ["--json"]):
            silent(maskmill(home, "plan", *words[1:], "--source", web + SIGNED, *asked))
        assert not leaks_of_postgres(database.uri)
    assert not leaks(home)


AWAY = "127.0.0.1:9"
"""Nobody answers there."""
OWN = {"PREFECT_API_URL": f"http://me:{SECRET}@{AWAY}/api?key={SECRET}"}
REGISTRY = {"MLFLOW_TRACKING_URI": f"http://admin:{CANARIES['tracking']}@{AWAY}"}
HOOK = {"MASKMILL_WEBHOOK": f"gopher://hooks/{CANARIES['webhook']}"}
WRONG = f"corpus.sources=[{{uri: 'https://me:{CANARIES['source']}@{AWAY}/x?token={CANARIES['token']}', kind: text}}]"
QUICK: list[tuple[list[str], dict[str, str]]] = [
    (["plan", "tiny", "--set", WRONG], {}),
    (["plan", "tiny", "--set", WRONG[:-2]], {}),  # no YAML
    (["plan", "tiny", "--source", "README.md"], {"MASKMILL_REMOTE": f"s3://bucket/a?key={CANARIES['source']}"}),
    (["ui", "--host", "0.0.0.0"], {"PREFECT_SERVER_API_AUTH_STRING": SECRET}),  # no user in it
    (["doctor"], OWN),
]
SLOW: list[tuple[list[str], dict[str, str]]] = [
    (["plan", "tiny", "--source", f"http://{AWAY}/a.txt{SIGNED}"], {}),
    (["plan", "tiny", "--set", f"remote=s3://me:{CANARIES['source']}@bucket/a"], {}),
    (["run", "tiny", "--source", "README.md"], OWN),
    (["deploy"], OWN | HOOK),
    (["lineage", "tiny"], REGISTRY),
    (["serve", "tiny", "--host", "0.0.0.0"], REGISTRY),
]


@pytest.mark.parametrize("cases", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_what_is_refused_is_refused_without_its_secrets(cases: list[tuple[list[str], dict[str, str]]], tmp_path: Path):
    """What a command says, and with --debug its traceback."""
    with ThreadPoolExecutor(4) as several:
        done = list(several.map(lambda case: maskmill(tmp_path, *case[0], "--debug", **case[1]), cases))
    for (words, _), refused in zip(cases, done, strict=True):
        assert refused.returncode in (2, 69) and "Error: " in refused.stderr, (words, refused.stderr)
        silent(refused)
    assert not leaks(tmp_path)


@pytest.mark.slow
def test_a_webhook_is_told_to_nobody_but_the_server(tmp_path: Path, whole_api: str) -> None:
    """It is kept there in a block of its own, encrypted; its path is the secret, as Slack has it."""
    hook = {"MASKMILL_WEBHOOK": f"http://127.0.0.1:9/services/{CANARIES['webhook']}", "PREFECT_API_URL": whole_api}
    for _ in range(2):
        done = maskmill(tmp_path, "deploy", "--debug", PREFECT_SERVER_API_AUTH_STRING="", **hook)
        assert done.returncode == 0 and "maskmill" in done.stdout, done.stderr
        silent(done)
    assert not leaks(tmp_path)


@pytest.fixture
def whole_api(tmp_path: Path) -> Iterator[str]:
    server = outage.prefect(tmp_path, ui.free_port(0))
    yield f"{server.address}/api"
    server.stop()


def test_named_secrets_and_headers_are_cut_out_of_what_is_said() -> None:
    secret = CANARIES["other"]
    for text in (
        f"AWS_SECRET_ACCESS_KEY={secret}",
        f"{{'HF_TOKEN': '{secret}', 'OTHER': 1}}",
        f'DB_PASSWORD="{secret}"',
        f"Authorization: Bearer {secret}",
        f"{{'Authorization': 'Basic {secret}='}}",
        f"http://me:{secret}@host/a?b={secret}",
        f"Bearer {secret}{secret}",
    ):
        assert not found(without_secrets(text).encode()), text
        assert not found(f"{UsageError(text)}".encode())
        assert without_secrets(without_secrets(text)) == without_secrets(text)
    kept = "pretrain.tokens=100, tokenizer: hf:a/b; set DB_PASSWORD first; a token: none; basic principles"
    assert without_secrets(kept) == kept


@pytest.mark.slow
def test_a_server_with_the_password_in_its_address(tmp_path: Path, web: str) -> None:
    """It works, and when the server goes away nobody says why with the password."""
    home, own = tmp_path / "home", {"MLFLOW_AUTH_ADMIN_PASSWORD": CANARIES["tracking"]}
    (tmp_path / "server").mkdir()
    own["MLFLOW_FLASK_SERVER_SECRET_KEY"] = "k" * 32
    backend, artifacts = f"sqlite:///{tmp_path / 'server' / 'mlflow.db'}", str(tmp_path / "server" / "files")
    words = ["run", "tiny", "--source", web]
    with servers.mlflow(tmp_path / "server", backend, artifacts, own, ["--app-name", "basic-auth"]) as address:
        uri = address.replace("://", f"://admin:{CANARIES['tracking']}@")
        done = maskmill(home, *words, MLFLOW_TRACKING_URI=uri)
        assert done.returncode == 0, done.stderr
        silent(done)
        wrong = maskmill(home, *words, MLFLOW_TRACKING_URI=uri.replace("admin:", f"admin:x{CANARIES['source']}"))
        assert wrong.returncode == 2 and "does not let you in" in wrong.stderr, wrong.stderr
        silent(wrong)
    gone = maskmill(home, *words, "--debug", MLFLOW_TRACKING_URI=uri)
    assert gone.returncode == 2 and "No MLflow server answers" in gone.stderr, gone.stderr
    silent(gone)
    assert not leaks(tmp_path)


def test_queries_are_written_nowhere_and_known_to_this_process() -> None:
    given = [f"https://host/a{SIGNED}", f"https://host/a?token={CANARIES['token']}", "https://host/b.txt"]
    written = recipes.to_be_written(given)
    assert len(set(written)) == 3 and written[2] == given[2] and not found("".join(written).encode())
    assert [source.uri for source in recipes.load("tiny", written).corpus.sources] == given
    for setting in (f"corpus.sources=['{given[0]}']", f"corpus.sources=['{given[0]}', a/relative/path]"):
        assert recipes.load("tiny", overrides=[setting]).corpus.sources[0].uri == given[0]
        command = recipes.command("tiny", given, [setting])
        assert not found(command.encode()) and command.count("https://host/a?…") == 3, command
    assert not found("".join(tracking.flat({"corpus": {"sources": [{"uri": one} for one in given]}}).values()).encode())
    with pytest.raises(UsageError, match="give the whole address"):
        recipes.load("tiny", ["https://another/a?…"])


def test_a_password_in_a_source_is_refused_without_a_word_of_it(tmp_path: Path) -> None:
    uri = f"https://me:{CANARIES['source']}@127.0.0.1:9/book.txt{SIGNED}"
    for command in ("run", "plan"):
        done = maskmill(tmp_path, command, "tiny", "--source", uri, "--debug")
        assert done.returncode == 2 and "password in its address" in done.stderr, done.stderr
        silent(done)
    assert not leaks(tmp_path)
    assert not [name for name in os.environ.values() if found(name.encode())]
