"""The server: MLflow's protocol, its limits, whom it answers, and how it ends."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from flows import cli, serve_commands
from flows.answering import Limits, application
from tasks.artifacts import Store
from tasks.errors import UsageError
from tasks.fill_mask import FillMask
from tests.tasks.test_fill_mask import write_model

ROOT = Path(__file__).parents[2]
PAGE = {"model": "first", "version": 3, "aliases": ["champion"], "weights": "d" * 64}
TOKEN = "a token of some length"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    return FillMask().open(write_model(Store(root / "store"), root / "model"))


@pytest.fixture(scope="module")
def client(model):
    with TestClient(application(model, PAGE, Limits(inputs=8, body=1_500_000)), "http://localhost") as client:
        yield client


def ask(client, body, **options):
    return client.post("/invocations", json=body, **options)


def test_it_says_what_the_model_says(client, model):
    texts = ["the [MASK] sat on the [MASK]", "a [MASK]"]
    reply = ask(client, {"inputs": texts, "params": {"top_k": 3}})
    assert reply.status_code == 200 and reply.json() == {"predictions": model.predict(texts, {"top_k": 3})}
    reply = ask(client, {"inputs": ["the cat"], "params": {"output": "embedding"}})
    assert reply.json() == {"predictions": model.predict(["the cat"], {"output": "embedding"})}
    assert ask(client, {"inputs": []}).json() == {"predictions": []}


@pytest.mark.parametrize(
    "body",
    [
        {"instances": ["a [MASK]", "the [MASK]"]},
        {"dataframe_split": {"index": [0, 1], "columns": ["text"], "data": [["a [MASK]"], ["the [MASK]"]]}},
        {"dataframe_records": [{"text": "a [MASK]"}, {"text": "the [MASK]"}], "params": None},
    ],
)
def test_every_form_of_mlflows_protocol_is_understood(client, model, body):
    assert ask(client, body).json() == {"predictions": model.predict(["a [MASK]", "the [MASK]"])}


BAD = [
    ({"inputs": ["none"]}, "Text 0 holds no [MASK]; put one where a token is to be filled in."),
    ({"inputs": ["[MASK] " * 10_000]}, "Text 0 has 10,000 masks, more than 1,000; ask about fewer at a time."),
    ({"inputs": ["[MASK]" + "x" * 1_000_000]}, "Text 0 has 1,000,006 characters, more than 200,000; cut it."),
    ({"inputs": ["[MASK]" + "x" * 40]}, "Text 0 has 43 tokens, but the context is 32 tokens long; cut it."),
    ({"inputs": ["a [MASK]"] * 9}, "The request has 9 inputs, more than 8; send fewer at a time."),
    ({"inputs": "a [MASK]"}, "The input must be a list of texts (or a table with a column of them)."),
    ({"inputs": [1, None]}, "The input must be a list of texts (or a table with a column of them)."),
    (
        {"inputs": ["a [MASK]"], "params": {"topk": 3}},
        "Unknown parameter 'topk'; the parameters are top_k, targets, output.",
    ),
    ({"inputs": ["a [MASK]"], "params": {"top_k": 0}}, "top_k is 0; it must be a whole number from 1 to 281,"),
    ({"inputs": ["a [MASK]"], "params": {"top_k": 282}}, "top_k is 282; it must be"),
    ({"inputs": ["a [MASK]"], "params": {"top_k": "3"}}, "top_k is '3'; it must be"),
    ({"inputs": ["a [MASK]"], "params": [3]}, "The parameters must be given by name; they are top_k, targets, output."),
    ({"inputs": ["a [MASK]"], "params": {"output": "x"}}, "output is 'x'; it must be fill-mask or embedding."),
    (
        {"inputs": ["a [MASK]"], "instances": []},
        "The body must be a JSON object with exactly one of inputs, instances,",
    ),
    (
        {"inputs": ["a [MASK]"], "parameters": {}},
        "The body has an unknown key 'parameters'; it may have inputs and params.",
    ),
    ({}, "The body must be a JSON object with exactly one of"),
    ([], "The body must be a JSON object with exactly one of"),
    ({"dataframe_split": {"columns": ["a", "b"], "data": []}}, "dataframe_split must be a table with one column,"),
    ({"dataframe_records": ["x"]}, "dataframe_records must be a table with one column, the inputs."),
    (b"{", "The body is no JSON at line 1, column 2; send an object with inputs."),
    (b"\xff", "The body is no JSON; send an object with inputs."),
    (b"[" * 100_000, "The body is no JSON; send an object with inputs."),
    (b'{"inputs": ["a [MASK] \\ud800"]}', "Text 0 has half of a surrogate pair at character 9; give whole characters."),
    (b'{"inputs": ["[MASK]"], "params": {"\\ud800": 1}}', "Unknown parameter '\\ud800'; the parameters are"),
]


@pytest.mark.parametrize(("body", "says"), BAD)
def test_a_request_that_cannot_be_answered_is_a_400_with_one_sentence(client, body, says):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = client.post("/invocations", content=body)
    assert reply.status_code == 400 and reply.headers["content-type"] == "application/json"
    told = reply.json()
    assert set(told) == {"error_code", "message"} and told["error_code"] == "INVALID_PARAMETER_VALUE"
    assert told["message"].startswith(says) and "\n" not in told["message"] and len(told["message"]) < 300


def test_a_body_that_is_too_large_or_no_json_is_refused(client):
    assert client.post("/invocations", content=b"x" * 1_500_001).status_code == 413
    assert client.post("/invocations", content=iter([b"x" * 1_000_000] * 2)).status_code == 413  # no length is said
    assert client.post("/invocations", content="a", headers={"Content-Type": "text/csv"}).status_code == 415
    assert client.get("/invocations").status_code == 405 and client.get("/nowhere").status_code == 404


def test_it_says_who_it_is_and_that_it_is_well(client):
    assert client.get("/version").json() == PAGE
    assert client.get("/ping").status_code == client.get("/health").status_code == 200


def test_requests_that_come_together_are_computed_together(model):
    class Counting:
        questions, batches = model.questions, []

        def answers(self, questions):
            self.batches.append(len(questions))
            time.sleep(0.05)
            return model.answers(questions)

    with (
        TestClient(application(Counting(), PAGE, Limits()), "http://localhost") as client,
        ThreadPoolExecutor(16) as pool,
    ):
        bodies = [{"inputs": [f"the [MASK] sat {'on ' * (n % 5)}"], "params": {"top_k": 1 + n % 3}} for n in range(32)]
        replies = list(pool.map(lambda body: ask(client, body).json()["predictions"][0], bodies))
    for body, reply in zip(bodies, replies, strict=True):
        (alone,) = model.predict(body["inputs"], body["params"])
        assert [it["token"] for it in reply[0]] == [it["token"] for it in alone[0]]
        assert [it["probability"] for it in reply[0]] == pytest.approx([it["probability"] for it in alone[0]], abs=1e-5)
    assert sum(Counting.batches) == 32 and len(Counting.batches) < 20


class Stuck:
    """A model that answers when it is told to."""

    def __init__(self, error=None):
        self.gate, self.begun, self.error = threading.Event(), threading.Event(), error

    def questions(self, texts, params):
        return texts

    def answers(self, questions):
        self.begun.set()
        self.gate.wait(20)
        if self.error:
            raise self.error
        return questions


def test_too_many_are_sent_away_and_too_slow_is_said():
    stuck = Stuck()
    limits = Limits(waiting=2, seconds=1.0)
    with TestClient(application(stuck, PAGE, limits), "http://localhost") as client, ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(ask, client, {"inputs": ["a"]})]
        assert stuck.begun.wait(10)
        slow += [pool.submit(ask, client, {"inputs": ["a"]}) for _ in range(2)]
        time.sleep(0.3)
        away = ask(client, {"inputs": ["a"]})
        assert (away.status_code, away.headers["retry-after"]) == (503, "1")
        assert [one.result().status_code for one in slow] == [504, 504, 504]
        assert "longer than 1 seconds" in slow[0].result().json()["message"]
        stuck.gate.set()


def test_an_answer_does_not_wait_for_a_receipt_of_its_head():
    with serve_commands.listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_model_that_fails_is_a_500_that_tells_the_caller_no_innards(capsys):
    stuck = Stuck(RuntimeError("secret innards"))
    stuck.gate.set()
    with TestClient(application(stuck, PAGE, Limits()), "http://localhost") as client:
        reply = ask(client, {"inputs": ["a"]})
    assert reply.status_code == 500 and "innards" not in reply.text
    assert "secret innards" in capsys.readouterr().err


def test_without_a_token_other_names_of_this_machine_are_refused(client):
    for host in ("evil.example", "evil.example:5001", "192.0.2.1:5001", "localhost.evil.example"):
        assert ask(client, {"inputs": []}, headers={"Host": host}).status_code == 403, host
    for host in ("127.0.0.1:5001", "[::1]:5001", "localhost"):
        assert ask(client, {"inputs": []}, headers={"Host": host}).status_code == 200, host


def test_with_a_token_only_who_brings_it_is_answered(model):
    with TestClient(application(model, PAGE, Limits(), TOKEN), "http://far.example") as client:
        for headers in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": "Bearer "},
        ):
            reply = ask(client, {"inputs": []}, headers=headers)
            assert reply.status_code == 401 and TOKEN not in reply.text
            assert client.get("/version", headers=headers).status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert ask(client, {"inputs": []}, headers=right).status_code == 200
        assert client.get("/version", headers=right).json() == PAGE
        assert client.get("/health").status_code == 200


def test_another_host_needs_a_token_and_a_token_some_length(tmp_path, monkeypatch):
    monkeypatch.delenv(serve_commands.TOKEN, raising=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        serve_commands.check_host(host, None)
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        with pytest.raises(UsageError, match="--token-file"):
            serve_commands.check_host(host, None)
        serve_commands.check_host(host, TOKEN)
    assert serve_commands.read_token(None) is None
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert serve_commands.read_token(tmp_path / "token") == TOKEN
    monkeypatch.setenv(serve_commands.TOKEN, "short")
    with pytest.raises(UsageError, match="16 ASCII") as raised:
        serve_commands.read_token(None)
    assert "short" not in str(raised.value)
    with pytest.raises(UsageError, match="No such file"):
        serve_commands.read_token(tmp_path / "none")


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKMILL_HOME", str(tmp_path))
    monkeypatch.setattr(serve_commands.environment, "settle", lambda home: None)
    with serve_commands.listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(cli.terminal.app, ["serve", "--port", port])
    assert result.exit_code == 2 and f"127.0.0.1:{port}: Address already in use" in result.output
    result = CliRunner().invoke(cli.terminal.app, ["serve", "--port", "0"])
    assert result.exit_code == 2 and "start with: maskmill run quickstart" in result.output


SCRIPT = """
import sys, time
from flows import answering, cli, serve_commands
import signal
signal.signal(signal.SIGTERM, cli._interrupt)
class Model:
    def questions(self, texts, params): return texts
    def answers(self, questions):
        print("begun", flush=True)
        time.sleep(1.5)
        return questions
listener = serve_commands.listen("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
serve_commands.run(answering.application(Model(), {}, answering.Limits()), listener, 30)
print("ended", flush=True)
"""


def post(port, body, timeout=20):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return json.load(reply)


def test_sigterm_ends_it_after_the_answers_that_are_under_way():
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline())
        with ThreadPoolExecutor(3) as pool:
            under_way = [pool.submit(post, port, {"inputs": [name]}) for name in "abc"]
            assert process.stdout.readline() == "begun\n"
            time.sleep(0.3)  # the others stand in the line
            process.send_signal(signal.SIGTERM)
            assert [one.result() for one in under_way] == [{"predictions": [name]} for name in "abc"]
        assert process.stdout.read().endswith("ended\n") and process.wait(20) == 0
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 1):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_path_with_a_slash_too_many_is_not_there_and_leads_nowhere(client):
    assert client.get("/version/", headers={"Host": "localhost"}, follow_redirects=False).status_code == 404
