"""Datasets of Hugging Face: a folder of `save_to_disk`, or one of the hub at the revision that it has now."""

import os
from pathlib import Path

from .errors import UsageError
from .manifests import json_of
from .remotes import failed, without_secrets

MARKS = (("dataset_info.json", "state.json"), ("dataset_dict.json",))
"""Files that tell a folder of `save_to_disk`."""


def is_saved(path: str) -> bool:
    return any(all(os.path.isfile(os.path.join(path, name)) for name in names) for names in MARKS)


def saved(uri: str) -> tuple[Path, list[Path]]:
    """A `save_to_disk` folder and its Arrow files, split after split, in the order of its state.json."""
    root = Path(uri.removeprefix("hf:"))
    states = sorted(root.glob("state.json")) or sorted(root.glob("*/state.json"))
    try:
        listed = [(path.parent, json_of(path.read_bytes())["_data_files"]) for path in states]
        files = [folder / one["filename"] for folder, entries in listed for one in entries]
        outside = any(not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)) for path in files)
    except (OSError, ValueError, KeyError, TypeError):
        files, outside = [], False
    if outside:
        raise UsageError(f"The source {uri} names files outside its folder in state.json; save it again.")
    if not files:
        raise UsageError(f"The source {uri} is no save_to_disk folder of datasets; give the path without hf:.")
    return root, files


def resolved(uri: str) -> tuple[str, str]:
    """NAME[:CONFIG] of a dataset, and the revision that it has now.

    Raises UsageError where the hub has no such thing or may not be asked, UnreachableError where it does not answer.
    """
    from huggingface_hub import HfApi

    address, _, revision = uri.removeprefix("hf:").partition("@")
    try:
        found = HfApi().dataset_info(address.partition(":")[0], revision=revision or None, timeout=30).sha
    except Exception as error:  # the hub's client raises its own, httpx's and urllib's errors
        said = f"The source {uri} is no folder here, and the hub does not give it ({words(error)})."
        raise failed(error, said) from None
    return address, str(found)


def words(error: Exception) -> str:
    """What the hub's client says, in short."""
    return without_secrets((str(error).strip() or type(error).__name__).split("\n", 1)[0][:160])
