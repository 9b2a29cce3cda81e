"""What maskmill itself wrote and reads again: artifacts, units, checkpoints, logs, state of a home, a shared remote.

A parser called "…-sealed" or "…-forged" gets past the seal or the digest: its cases are sealed again, as one could who writes to a
shared folder. It may refuse or take them, but in no other words than the documented ones.
"""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from flows import ledger, ui
from tasks import evidence, gate, hub, lineage, outbox, packs, places, retention, rows
from tasks.artifacts import Identity, Store, finish_unit, finished_unit
from tasks.batches import ShardReader
from tasks.digests import Memory
from tasks.errors import DataError, UsageError
from tasks.journal import Journal
from tasks.manifests import Manifest, digest_of, load, page, parsed, read_sealed, sealed, verify
from tasks.remote_store import Remote
from tasks.results import MODEL, Units
from tasks.spool import Spool
from tests.faults.fuzz import Build, Parser, Silent
from tests.faults.fuzz_cases import Case
from tests.tasks import handmade


def resealed(value: Any) -> bytes:
    """A page whose seal fits; raises TypeError where the value is no object."""
    return page(sealed({name: one for name, one in value.items() if name != "seal"}))


def remade(value: Any) -> bytes:
    """A manifest's page whose key and digest fit, too."""
    identity = Identity(value["stage"], value["version"], value["config"], value["inputs"])
    parts = ("stage", "version", "config", "inputs", "files", "counts", "facts")
    return resealed(value | {"key": identity.key, "digest": digest_of({part: value[part] for part in parts})})


def small_shards(folder: Path) -> Manifest:
    return handmade.shards(Store(folder / "store"), rows=24, files=1, length=32)


def manifest(folder: Path, forged: bool) -> Parser:
    """The page of an artifact as a store, a lineage and a remote read it."""
    made = small_shards(folder)
    whole = (made.folder / "manifest.json").read_bytes()

    def read(case: Case) -> None:
        (made.folder / "manifest.json").write_bytes(case.data)
        lineage._inputs(made.folder, "shards")
        lineage._folder(Store(folder / "store"), "shards", made.digest)
        with suppress(DataError):
            retention.nodes(Store(folder / "store"), ["shards"])
        found = parsed(case.data, made.folder, made.folder)
        if not forged and case.data != whole:
            raise Silent("a manifest of other bytes was taken")
        load(made.folder)
        verify(found)

    return Parser([whole], read, "json", remade if forged else None)


def receipt(folder: Path, forged: bool) -> Parser:
    """The receipt of a unit, and the pack index that reads receipts."""
    (folder / "unit.bin").write_bytes(b"data" * 100)
    finish_unit(folder, "pack-1", [folder / "unit.bin"], {"entries": {"a": {"first": 0, "rows": 3}}, "rows": 3})
    path = folder / "pack-1.receipt.json"
    whole = path.read_bytes()

    def read(case: Case) -> str | None:
        path.write_bytes(case.data)
        packs.index(folder)
        found = finished_unit(folder, "pack-1")
        if found is not None and not forged and case.data != whole:
            raise Silent("a receipt of other bytes was taken")
        path.write_bytes(case.data)
        packs._taken_up(folder, "pack-1", ["a"])
        return "rejected" if found is None else None

    return Parser([whole], read, "json", resealed if forged else None)


def measured(folder: Path) -> Parser:
    """What was measured beside an artifact."""
    path = folder / "measured.json"

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        read_sealed(path)

    example = page(sealed({"seconds": 1.5, "tokens_per_second": 12.0, "shares": {"a": 1}}))
    return Parser([example], read, "json", resealed)


def shard(folder: Path) -> Parser:
    """A file of shards, as training opens it: its digest stands in the manifest."""
    made = small_shards(folder)
    path = made.path("train-00000.arrow")
    whole = path.read_bytes()

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        ShardReader(made, "train")
        if case.data != whole:
            raise Silent("a shard of other bytes was read")

    return Parser([whole], read)


def shard_forged(folder: Path) -> Parser:
    """The same where the manifest says that these are its bytes."""
    made = small_shards(folder)
    path = folder / "shard.arrow"

    def read(case: Case) -> None:
        path.write_bytes(case.data)
        batch = rows.read(path)
        rows.tokens_of(batch).sum()
        lengths, offsets = rows.segments_of(batch)
        lengths.sum(), offsets.sum()
        rows.stored_draw(batch, 0).sum()
        rows.values(batch.column("sequence")).sum()

    return Parser([made.path("train-00000.arrow").read_bytes()], read)


def checkpoint(folder: Path, forged: bool, of: str) -> Parser:
    """The newest checkpoint of a run, with its receipt (or its tensors) damaged."""
    import torch

    from tasks import checkpoint as checkpoints
    from tasks.tensor_file import Image

    image = Image()
    image.fill(
        {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.tensor(3), "c": torch.ones(5, dtype=torch.uint8)}
    )
    checkpoints.store(folder, 100, image, {"step": 100, "curve_bytes": 0, "mark": {}})
    tensors, note = folder / "step-000000100.safetensors", folder / "step-000000100.json"
    files = {path: path.read_bytes() for path in (tensors, note)}
    path = tensors if of == "tensors" else note

    def refuse(state: dict[str, Any]) -> str | None:
        return None

    first = checkpoints.load(folder, 100)
    whole = first.step, first.state, _bytes(first.tensors)

    def read(case: Case) -> str | None:
        for one, data in files.items():
            one.write_bytes(data)
        path.write_bytes(case.data)
        if forged and of == "tensors":
            value = json.loads(files[note])
            value |= {"bytes": len(case.data), "sha256": hashlib.sha256(case.data).hexdigest()}
            note.write_bytes(resealed(value))
        found, _ = checkpoints.newest(folder, refuse)
        if found is not None and not forged and (found.step, found.state, _bytes(found.tensors)) != whole:
            raise Silent("another checkpoint than the one that was written was taken")
        if found is not None:
            [tensor.sum() for tensor in found.tensors.values()]
        else:
            checkpoints.newest(folder, refuse, regular_only=True)
        return "rejected" if found is None else None

    form = "json" if of == "receipt" else "bytes"
    return Parser([files[path]], read, form, resealed if forged and of == "receipt" else None)


def _bytes(some: Any) -> dict[str, Any]:
    return {name: one.tolist() for name, one in some.items()}


def tensors(folder: Path) -> Parser:
    """A safetensors header of odd entries, in front of as much data as it speaks of."""
    import torch

    from tasks.tensor_file import lay_out, parse

    def laid(value: Any) -> bytes:
        """As the layout has it, where that can be computed: else the header never gets so far."""
        layout = lay_out({name: (one["dtype"], tuple(one["shape"])) for name, one in value.items()})
        if not 0 <= layout.size < 1 << 16:
            raise ValueError("too much data")
        return layout.head + bytes(int(layout.size) - len(layout.head))

    def read(case: Case) -> None:
        data = case.data
        if data[:1] == b"{":
            try:
                data = laid(json.loads(data))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                data = len(data).to_bytes(8, "little") + data
        [one.sum() for one in parse(torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)).values()]

    shapes = {"a": ("F32", (3, 4)), "b": ("I64", ()), "c": ("U8", (5,)), "d": ("BOOL", (2, 0, 3))}
    return Parser([lay_out(shapes).head[8:].strip()], read, "json", laid)


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
    "manifest": partial(manifest, forged=False),
    "manifest-sealed": partial(manifest, forged=True),
    "receipt": partial(receipt, forged=False),
    "receipt-sealed": partial(receipt, forged=True),
    "measured": measured,
    "shard": shard,
    "shard-forged": shard_forged,
    "checkpoint-receipt": partial(checkpoint, forged=False, of="receipt"),
    "checkpoint-receipt-sealed": partial(checkpoint, forged=True, of="receipt"),
    "checkpoint-tensors": partial(checkpoint, forged=False, of="tensors"),
    "checkpoint-tensors-forged": partial(checkpoint, forged=True, of="tensors"),
    "tensor-header": tensors,
    "journal": journal,
    "spool": spool,
    "outbox": outboxes,
    "ledger": runs,
    "state": state,
    "scores": scores,
    "remote": remote,
    "remote-fetch": pull,
}
