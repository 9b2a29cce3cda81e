"""Units: the files that one process reads into one pack, or finds in one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import packs
from .packs import Manner, Reading
from .sources import Surveyed
from .streams import Item

UNIT_BYTES = 8 << 20
UNIT_FILES = 256


@dataclass(frozen=True)
class Unit:
    """Files of one source that come one after the other; `reading` is what has to be read for them, if anything."""

    source: int
    files: tuple[tuple[str, Item], ...]
    reading: Reading | None


def units(surveyed: Sequence[Surveyed], known: dict[str, str]) -> Iterator[Unit]:
    """Consecutive files in groups of about UNIT_BYTES, new ones and those of each pack apart. Reads none twice.

    known   key of a file -> its pack
    """
    asked: set[str] = set()
    for source, one in enumerate(surveyed):
        group: list[tuple[str, Item]] = []
        pack, size = "", 0
        for item in one.items:
            item = replace(item, stop_bytes=_stop(one, item))
            key = packs.key_of(item)
            home = known.get(key, "")
            if group and (home != pack or size >= UNIT_BYTES or len(group) == UNIT_FILES):
                yield _unit(source, group, pack, asked)
                group, size = [], 0
            group.append((key, item))
            pack, size = home, size + (0 if home else item.size)
        if group:
            yield _unit(source, group, pack, asked)


def _stop(one: Surveyed, item: Item) -> int:
    """Reading a file larger than its source's budget need not go to its end."""
    budget = one.source.budget_bytes
    return budget if budget and (item.size > budget or item.remote or item.kind == "hub") else 0


def _unit(source: int, group: Sequence[tuple[str, Item]], pack: str, asked: set[str]) -> Unit:
    fresh = {key: (key, item) for key, item in group if key not in asked}  # the same file twice is read once
    asked.update(fresh)
    files = tuple(fresh.values())
    reading = Reading(pack or packs.name_of(list(fresh)), files) if files else None
    return Unit(source, tuple(group), reading)


def read_unit(unit: Unit, folder: Path, manner: Manner) -> tuple[str, dict[str, dict[str, Any]]]:
    """Reads what has to be read for a unit: the name of the pack, and the entry of each file in it."""
    return packs.read(unit.reading, folder, manner) if unit.reading else ("", {})
