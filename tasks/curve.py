"""The picture of a training run: loss by tokens, with the lines that it must stay below. Same points, same bytes."""

import io
import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from . import modalities
from .artifacts import Manifest

STYLES: tuple[Any, ...] = ("--", ":", "-.", (0, (8, 3)), (0, (1, 4)))
"""Of the level lines, in turn."""


def points_of(weights: Manifest, vocabulary: Manifest) -> list[dict[str, Any]]:
    """The points of a training; of one on two modalities, what they say of this vocabulary's, as if it was alone."""
    points = [json.loads(line) for line in weights.whole("curve.jsonl").read_bytes().splitlines()]
    if modalities.BESIDE not in weights.facts:
        return points
    own = f"_{modalities.name_of(vocabulary.facts)}"
    first = modalities.face(weights, vocabulary.digest) == modalities.MODEL
    kept = {"tokens", "validation/masked_cross_entropy"} if first else {"tokens"}
    return [
        {name.removesuffix(own): value for name, value in one.items() if name in kept or name.endswith(own)}
        for one in points
    ]


def draw(points: Sequence[Mapping[str, Any]], references: Mapping[str, float], rate: str) -> bytes:
    """A PNG of curve.jsonl's points.

    points      "tokens" and "train/loss"; "validation/masked_cross_entropy" where it was measured
    references  what is compared -> its masked cross-entropy on the test split, drawn as level lines
    rate        the mask rate of the shards, for the axis
    """
    import matplotlib

    # Not pyplot: it keeps figures in a global registry and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the bytes
        figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
        axes = figure.add_subplot()
        trained = [(point["tokens"], point["train/loss"]) for point in points if "train/loss" in point]
        held_out = [
            (point["tokens"], point["validation/masked_cross_entropy"])
            for point in points
            if "validation/masked_cross_entropy" in point
        ]
        if trained:
            axes.plot(*zip(*trained, strict=True), color="tab:blue", linewidth=1, label="training")
        if held_out:
            axes.plot(
                *zip(*held_out, strict=True), "o-", color="tab:orange", markersize=4, linewidth=1, label="validation"
            )
        for (label, level), style in zip(references.items(), cycle(STYLES)):
            axes.axhline(level, color="0.35", linestyle=style, linewidth=1, label=f"{label} {level:.2f}")
        axes.set_xlabel("tokens trained on")
        axes.set_ylabel(f"nats per masked token (rate {rate})")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        picture = io.BytesIO()
        FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return picture.getvalue()
