"""Units: the files that one process reads into one pack, or finds in one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
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

    known   key of a file -> its pack; a pack is taken up once, with all of its files
    """
    keyed = [[(packs.key_of(item), item) for item in _stopping(one)] for one in surveyed]
    homes: dict[str, dict[str, Item]] = {}
    for key, item in chain.from_iterable(keyed):
        if key in known:
            homes.setdefault(known[key], {})[key] = item
    asked: set[str] = set()
    for source, files in enumerate(keyed):
        for pack, group in _groups(files, known):
            wanted = homes[pack] if pack else dict(group)
            fresh = tuple((key, item) for key, item in wanted.items() if key not in asked)
            asked.update(wanted)
            reading = Reading(pack or packs.name_of([key for key, _ in fresh]), fresh) if fresh else None
            yield Unit(source, tuple(group), reading)


def _stopping(one: Surveyed) -> Iterator[Item]:
    """Reading a file larger than its source's budget need not go to its end."""
    budget = one.source.budget_bytes
    for item in one.items:
        stops = budget and (item.size > budget or item.remote or item.kind == "hub")
        yield replace(item, stop_bytes=budget) if stops else item


def _groups(files: Sequence[tuple[str, Item]], known: dict[str, str]) -> Iterator[tuple[str, list[tuple[str, Item]]]]:
    """(pack, "" for files that are in none; files that come one after the other)."""
    group: list[tuple[str, Item]] = []
    pack, size = "", 0
    for key, item in files:
        home = known.get(key, "")
        if group and (home != pack or size >= UNIT_BYTES or len(group) == UNIT_FILES):
            yield pack, group
            group, size = [], 0
        group.append((key, item))
        pack, size = home, size + (0 if home else item.size)
    if group:
        yield pack, group


def read_unit(unit: Unit, folder: Path, manner: Manner) -> tuple[str, dict[str, dict[str, Any]]]:
    """Reads what has to be read for a unit: the name of the pack, and the entry of each file in it."""
    return packs.read(unit.reading, folder, manner) if unit.reading else ("", {})
