"""What maskmill itself wrote and reads again: artifacts, units, checkpoints, logs, state of a home, a shared remote.

A parser called "…-sealed" or "…-forged" gets past the seal or the digest: its cases are sealed again, as one
could who writes to a shared folder. It may refuse or take them, but in no other words than the documented ones.
"""

import hashlib
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tasks import lineage, packs, retention, rows
from tasks.artifacts import Identity, Store, finish_unit, finished_unit
from tasks.batches import ShardReader
from tasks.errors import DataError
from tasks.manifests import Manifest, digest_of, load, page, parsed, read_sealed, sealed, verify
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
}
