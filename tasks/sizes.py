"""Named sizes of the encoder: a name for what is usual, and every dimension can still be set by itself.

base and large are those of ModernBERT (Warner et al. 2024, arXiv 2412.13663), base-12 is as deep as BERT's. The others
follow them down, with heads 64 wide and F = 1.5 D; at a width of 128 F is 2 D, as it was before there were names.

Suffixes: D width, F intermediate.
"""

import difflib
from collections.abc import Mapping

from .errors import UsageError

DIMENSIONS = ("layers", "width", "heads", "intermediate")
SIZES = {
    "tiny": (2, 128, 2, 256),
    "mini": (4, 128, 2, 256),
    "small": (6, 256, 4, 384),
    "medium": (8, 512, 8, 768),
    "base-12": (12, 768, 12, 1152),
    "base": (22, 768, 12, 1152),
    "large": (28, 1024, 16, 2624),
}
"""Name -> its DIMENSIONS."""


def dimensions(size: str, overrides: Mapping[str, int]) -> dict[str, int]:
    """All DIMENSIONS of an encoder.

    Args:
        size: a name of SIZES.
        overrides: dimensions that differ; 0, or none, is that of the size. Other names are left alone, so these may be
            all settings of pretrain.
    Raises:
        UsageError: there is no such size, or a dimension is negative, or heads of an even width do not fit.
    """
    if size not in SIZES:
        near = difflib.get_close_matches(size, SIZES, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"pretrain.size: there is no size {size!r}. {hint}Sizes here: {', '.join(SIZES)}.")
    found = {name: overrides.get(name) or usual for name, usual in zip(DIMENSIONS, SIZES[size], strict=True)}
    for name, value in found.items():
        if value < 0:
            raise UsageError(f"pretrain.{name} is {value}; use 1 or more, or 0 for that of the size {size}.")
    if found["width"] % (2 * found["heads"]):
        raise UsageError(
            f"pretrain.width is {found['width']} for {found['heads']} heads; use a multiple of 2 * heads, "
            f"{2 * found['heads']}."
        )
    return found
