"""Which pretrain artifact a run is forked from: pretrain.fork names it by its key, or by its folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from tasks import pretrain
from tasks.artifacts import Manifest, Store, load
from tasks.errors import DataError, UsageError

SHOWN = 5
"""Artifacts that a message names, the newest."""
SHORT = 12
"""Digits of a key that tell it apart, for people."""


def find(fork: str, store: Store) -> Manifest | None:
    """The artifact; None where a recipe's run is not forked (""). Its facts["stable"] has an entry per checkpoint.

    Where only the remote has it, its folder is not there yet: a run fetches it.

    Raises UsageError naming what exists, where there is no such artifact, more than one, or no such checkpoint in it.
    """
    if not fork:
        return None
    name, step = pretrain.fork_parts(fork)
    manifest = _in_folder(Path(name)) if os.sep in name else _with_key(name, store)
    steps = _steps(manifest)
    if not steps:
        raise UsageError(
            f"pretrain.fork: {manifest.folder} has no stable checkpoints; make it again with "
            "pretrain.stable_checkpoints of 1 or more."
        )
    if step and step not in steps:
        raise UsageError(
            f"pretrain.fork: {_described(manifest)} has no checkpoint after step {step}; use one of these."
        )
    return manifest


def _with_key(key: str, store: Store) -> Manifest:
    folders = store.folders(pretrain.STAGE)
    found = [folder for folder in folders if folder.name.startswith(key.lower())]
    if len(found) == 1:
        return _in_folder(found[0])
    shared = store.remote.of_stage(pretrain.STAGE, store.root) if store.remote and not found else ()
    elsewhere = [offer.manifest for offer in shared if offer.manifest.key.startswith(key.lower())]
    if len(elsewhere) == 1:
        return elsewhere[0]
    found += [manifest.folder for manifest in elsewhere]
    if found:
        raise UsageError(f"pretrain.fork: {len(found)} keys begin with {key!r}: {_listed(found)}; give more digits.")
    there = f"there are {_listed(folders)}" if folders else "there are none yet"
    raise UsageError(f"pretrain.fork: no pretrain artifact has a key that begins with {key!r}; {there}.")


def _in_folder(folder: Path) -> Manifest:
    try:
        manifest = load(folder)
    except (DataError, OSError) as error:
        raise UsageError(f"pretrain.fork: {folder} is no whole artifact: {error}") from None
    if manifest.stage != pretrain.STAGE:
        raise UsageError(f"pretrain.fork: {folder} is an artifact of {manifest.stage}; give one of {pretrain.STAGE}.")
    return manifest


def _steps(manifest: Manifest) -> list[int]:
    return sorted(entry["step"] for entry in manifest.facts.get("stable", []))


def _listed(folders: Sequence[Path]) -> str:
    """The newest of some artifacts, those that cannot be read by their keys only."""
    words = []
    for folder in reversed(folders[-SHOWN:]):
        try:
            words.append(_described(load(folder)))
        except DataError:
            words.append(folder.name[:SHORT])
    return ", ".join(words) + (f" and {len(folders) - SHOWN} older" if len(folders) > SHOWN else "")


def _described(manifest: Manifest) -> str:
    steps = ", ".join(map(str, _steps(manifest)))
    return f"{manifest.key[:SHORT]} ({f'stable after steps {steps}' if steps else 'nothing stable'})"
