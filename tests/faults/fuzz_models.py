"""Folders of models that `maskmill compare` is given: our own in stock form, and those of others."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.fuzz import Build, Parser
from tests.faults.fuzz_cases import Case


def stock(folder: Path, name: str) -> Parser:
    """A model in stock form, as the trainer wrote it."""
    from tasks.encoder import EncoderConfig
    from tasks.stock import load_stock, save_stock
    from tests.tasks.test_subjects import WIDE, filled

    save_stock(filled(EncoderConfig(vocabulary_size=128, length=64, **WIDE)), folder)
    return _of(folder / name, partial(load_stock, folder))


def other(folder: Path, name: str) -> Parser:
    """A model that transformers saved."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub comes: a name in a damaged file is not looked up
    from tasks.downloaded import downloaded
    from tests.tasks import other_models

    other_models.saved(folder, "bert")
    return _of(folder / name, partial(downloaded, folder, "a model", "cpu"))


def _of(path: Path, opened: Any) -> Parser:
    def read(case: Case) -> None:
        path.write_bytes(case.data)
        opened()

    return Parser([path.read_bytes()], read, "json" if path.suffix == ".json" else "bytes")


FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
PARSERS: dict[str, Build] = {
    **{f"stock-{name}": partial(stock, name=name) for name in FILES[:2]},
    **{f"other-{name}": partial(other, name=name) for name in FILES},
}
