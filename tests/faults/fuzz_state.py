"""What a run writes beside its artifacts: logs, outboxes, the ledger, remembered digests, scores, a shared remote."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from flows import ledger, ui
from tasks import evidence, gate, hub, lineage, outbox, places
from tasks.digests import Memory
from tasks.errors import DataError, UsageError
from tasks.journal import Journal
from tasks.manifests import page, sealed
from tasks.remote_store import Remote
from tasks.results import MODEL, Units
from tasks.spool import Spool
from tests.faults.fuzz import Build, Parser, Silent
from tests.faults.fuzz_cases import Case
from tests.faults.fuzz_stored import remade, resealed, small_shards


def journal(folder: Path) -> Parser:
    """The curve that a resume cuts back to its mark, and the spool that is shipped while it is written."""
    log = Journal(folder)
    for step in range(4):
        log.write({"step": step, "train/loss": 1.5}, {"step": step, "timestamp_ms": 1, "metrics": {"a": 0.5}})
    whole, mark = log.curve.read_bytes(), log.mark()

    def read(case: Case) -> str | None:
        log.curve.write_bytes(case.data)
        held = Journal(folder).holds(mark)
        if held and case.data[: len(whole)] != whole:
            raise Silent("a curve of other bytes holds its mark")
        Journal(folder).cut_back(mark if held else None)
        return None if held else "rejected"

    return Parser([whole], read, "lines")


def spool(folder: Path) -> Parser:
    """Metrics as the training process appends them; whoever ships them gets dictionaries of numbers, or nothing."""
    from tasks.tracking import _thinned

    path = folder / "measured.metrics.jsonl"
    lines = [
        {"step": step, "timestamp_ms": 1, "metrics": {"train/loss": 0.5, "validation/x": 1.0}} for step in range(4)
    ]

    def take(records: list[dict[str, Any]]) -> None:
        [(record["step"] + 1, record["timestamp_ms"] + 1, dict(record["metrics"])) for record in records]

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        shipped = Spool(path, take)
        shipped.ship()
        if shipped.failed:
            raise Silent("a line of the spool that is no record was handed on")
        take(_thinned(path))

    return Parser([b"".join(json.dumps(line).encode() + b"\n" for line in lines)], read, "lines")


def outboxes(folder: Path) -> Parser:
    """What a killed process left to be told."""
    from tasks.delivery import WRONG, Delivery

    path = folder / "1.jsonl"
    point = {"step": 1, "timestamp_ms": 2, "metrics": {"a": 1.0}}
    entries: list[dict[str, Any]] = [
        {"do": "open", "stage": "", "run": "r", "address": "a", "name": "n", "tags": {}, "at": 1},
        {"do": "open", "stage": "pretrain", "run": "r", "tags": {"a": "b"}, "at": 1, "name": "x"},
        {"do": "metrics", "stage": "pretrain", "metrics": {"a": 1.0}, **point},
        {"do": "parameters", "stage": "pretrain", "values": {"a": "b"}},
        {"sent": 60},
        {"do": "tags", "stage": "", "values": {"a": "b"}},
        {"do": "end", "stage": "pretrain", "status": "FINISHED", "at": 3},
    ]

    class Client:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("search"):
                return lambda *_, **__: []
            run = SimpleNamespace(
                info=SimpleNamespace(run_id="1", start_time=1), data=SimpleNamespace(tags={}, metrics={})
            )
            return lambda *_, **__: run

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        heads = list(outbox.heads(folder))
        box = outbox.Outbox.take(path)
        if box is None:
            return
        try:
            delivery = Delivery(Client(), lambda _: "1", heads[0][1] if heads else box.head)  # type: ignore[arg-type]
            for _ in range(20):
                if not (lines := box.entries):
                    break
                for batch in outbox.batches(lines, 100):
                    with suppress(*WRONG):  # the sender keeps such an outbox for a person to read
                        delivery.send([line.entry for line in batch])
                    box.acknowledge(batch)
        finally:
            box.close()

    return Parser([b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)], read, "lines")


def runs(folder: Path) -> Parser:
    """The entry of a run."""
    (folder / "runs").mkdir()
    path = folder / "runs" / "1.json"
    stage = {"state": "made", "seconds": 1.0, "why": "", "key": "k", "digest": "d", "inputs": ["i"]}
    entry = ledger.Entry(
        "1", "tiny", "maskmill run tiny", "running", 1.0, 2.0, 0, "", {"corpus": stage, "pretrain": stage}
    )
    whole = json.dumps(vars(entry)).encode()

    def read(case: Case) -> str | None:
        path.write_bytes(case.data)
        found = ledger.read(folder)
        ledger.needed(found)
        ledger.digests(found)
        ledger.inputs(found, "corpus")
        ledger.stopped(folder, "")
        json.dumps([ledger.page(one) for one in found])
        ledger.show(found)
        return None if found else "rejected"

    return Parser([whole], read, "json")


def state(folder: Path) -> Parser:
    """Small files of a home: remembered digests, addresses of servers, places of sources, folders of `datasets`."""
    (folder / "saved").mkdir()
    source = folder / "source.txt"
    source.write_text("x")
    now = source.stat()
    stamp = [now.st_size, now.st_mtime_ns, now.st_ino, now.st_ctime_ns]
    examples = [
        {str(source): [*stamp, "d" * 64]},
        {"prefect": "http://127.0.0.1:1", "mlflow": "http://127.0.0.1:1"},
        {"source": "s", "label": "l", "away": False, "path": str(source), "digest": "d", "bytes": 1, "stamp": stamp},
        {"_data_files": [{"filename": "data.arrow"}]},
        {"sha256": {"model.safetensors": "d" * 64}},
    ]

    def read(case: Case) -> None:
        for name in ("digests.json", "ui.json", places.PLACES, "saved/state.json"):
            (folder / name).write_bytes(case.data)
        Memory(folder).digests([source])
        with patch("urllib.request.urlopen", side_effect=OSError):  # a case may name any host
            ui.running(folder)
        lineage.model_findings(folder)
        with suppress(DataError):
            places.files(folder)
        with suppress(UsageError):
            hub.saved(f"hf:{folder / 'saved'}")

    return Parser([json.dumps(one).encode() for one in examples], read, "json")


def scores(folder: Path) -> Parser:
    """The evidence of an evaluation, fetched from a registry."""
    path = folder / evidence.FILE
    n, names = np.full(3, 7), ("a", "b", "c")
    units = [
        Units("document", ("",) * 3, names, n, {MODEL: n * 0.5}),
        Units("class", names, names, n, {MODEL: n * 0.5}),
    ]
    model = {"pretrain": "p", "vocabulary": "v", "changes_text": False}
    evidence.write(path, units, {"test": "t", "rate": "0.3", "copies": {}, "models": {MODEL: model}})

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        for one in evidence.read(path).values():
            gate.decide(one, one, gate.Rule())

    return Parser([path.read_bytes()], read)


def remote(folder: Path) -> Parser:
    """A shared folder's manifest and figures; what is fetched is what its manifest says, or nothing."""
    made = small_shards(folder)
    there = Remote(f"file://{folder}/remote")
    there.push(made)
    place = folder / "remote" / "shards" / made.key
    whole = (place / "manifest.json").read_bytes()

    def read(case: Case) -> str | None:
        (place / "manifest.json").write_bytes(case.data)
        (place / made.digest / "measured.json").write_bytes(case.data)
        reader = Remote(there.url)
        found = list(reader.of_stage("shards", folder / "other"))
        offer = reader.offer(made.identity, folder / "other" / "shards" / made.key)
        reader._figures(f"shards/{made.key}/{made.digest}")
        outside = {path.name for path in folder.iterdir()} - {"store", "remote", "other"}
        if outside:
            raise Silent(f"a file outside the store: {outside}")
        return None if offer or found else "rejected"

    figures = page(sealed({"files": {"measured.json": "{}", "measured.metrics.jsonl": ""}}))
    return Parser([whole, figures], read, "json", _either)


def _either(value: Any) -> bytes:
    return remade(value) if "stage" in value else resealed(value)


def pull(folder: Path) -> Parser:
    """A whole fetch, of a manifest that was forged: nothing is written outside the hidden folder."""
    made = small_shards(folder)
    Remote(f"file://{folder}/remote").push(made)
    place = folder / "remote" / "shards" / made.key
    whole = (place / "manifest.json").read_bytes()
    arriving = folder / "arriving"

    def read(case: Case) -> str | None:
        (place / "manifest.json").write_bytes(case.data)
        reader = Remote(f"file://{folder}/remote")
        offer = reader.offer(made.identity, arriving)
        if offer is None:
            return "rejected"
        data = place / offer.manifest.digest
        if not data.exists():
            os.symlink(place / made.digest, data)
        try:
            reader.pull(offer, arriving)
        finally:
            if data.is_symlink():
                data.unlink()
            if set(os.listdir(folder)) - {"store", "remote", "arriving"}:
                raise Silent("a file outside the store")
            shutil.rmtree(arriving, ignore_errors=True)
        return None

    return Parser([whole], read, "json", remade)


PARSERS: dict[str, Build] = {
    "journal": journal,
    "spool": spool,
    "outbox": outboxes,
    "ledger": runs,
    "state": state,
    "scores": scores,
    "remote": remote,
    "remote-fetch": pull,
}
