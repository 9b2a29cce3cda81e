"""The commands about models that are there: ask them, compare them."""

import base64
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import environment, terminal
from tasks.artifacts import write_atomic
from tasks.errors import UsageError
from tasks.folders import expanded
from tasks.progress import say

IMAGES = (".png", ".jpg", ".jpeg")


def predict(
    what: Annotated[
        str,
        typer.Argument(
            metavar="TEXT|FILE.png", help="A text with one or more [MASK], or a PNG or JPEG; for --embedding any."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME[@ALIAS|/VERSION]", help="Default: the champion of the only model.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Predictions for each [MASK], or hidden patch.")] = 5,
    targets: Annotated[str, typer.Option(metavar="WORDS", help="Rank only these, each one token.")] = "",
    embedding: Annotated[bool, typer.Option("--embedding", help="The text or image as one vector instead.")] = False,
    mask: Annotated[
        str, typer.Option(metavar="PATCHES", help="Of an image: hide these, row by row from 0, such as 3,7,10-13.")
    ] = "",
    rate: Annotated[str, typer.Option(help="Of an image: hide this share of its patches, by --seed.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of an image: which ones --rate hides.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Of an image: write it filled in.")] = None,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Fill the masks of a text, or the hidden patches of an image, with a registered model; or make a vector of it.

    Which version answers is said on stderr; with --json in model, version, aliases and weights (their digest), beside
    masks or embedding, of an image beside grid, hidden, codes and picture (base64 of a PNG).

    Example: maskmill predict "Returns a [MASK] of the array." --top 3
    Example: maskmill predict digit.png --mask 3,7 --out filled.png
    """
    from flows import summary
    from tasks import serving

    environment.settle(terminal.home())
    environment.reach_hub(False)
    if _is_image(what, mask, rate, out):
        if targets:
            raise UsageError("--targets ranks words of a text; leave it out for an image.")
        params = {"top_k": top, "rate": rate, "seed": seed, "output": "embedding" if embedding else "fill-image"}
        _predict_image(what, mask, model, params, out, as_json)
        return
    output = "embedding" if embedding else "fill-mask"
    served, answer = serving.ask(what, model, {"top_k": top, "targets": targets, "output": output})
    if as_json:
        terminal.as_json(served.page() | {"embedding" if embedding else "masks": answer})
        return
    say(f"{served}:")
    if embedding:
        _show_vector(answer)
    else:
        summary.show_predictions(what, answer)


def _is_image(what: str, mask: str, rate: str, out: Path | None) -> bool:
    """A text may end in .png, too; then there is hardly a file of that name."""
    named = what.lower().endswith(IMAGES) and (os.path.isfile(expanded(what)) or not set(" [<") & set(what))
    return bool(mask or rate or out or named)


def _predict_image(
    name: str, mask: str, model: str | None, params: Mapping[str, Any], out: Path | None, as_json: bool
) -> None:
    from flows import summary
    from tasks import serving

    try:
        image = {"image": Path(expanded(name)).read_bytes()} | ({"mask": patches(mask)} if mask else {})
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}; give the path of a PNG or JPEG.") from None
    embedding = params["output"] == "embedding"
    served, answer = serving.ask(image, model, dict(params) | {"picture": "png"}, modality="images")
    if out and not embedding:
        write_atomic(out.absolute(), base64.b64decode(answer["picture"]))
    if as_json:
        terminal.as_json(served.page() | ({"embedding": answer} if embedding else answer))
        return
    say(f"{served}:")
    if embedding:
        _show_vector(answer)
    else:
        summary.show_filled(answer)


def _show_vector(vector: Sequence[float]) -> None:
    print(*(f"{value:.6f}" for value in vector))


def patches(mask: str) -> list[int]:
    """ "3,7,10-13" -> the numbers. Raises UsageError."""
    found: list[int] = []
    for part in mask.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and len(end) < 7 for end in ends):
            raise UsageError(f"--mask {mask[:60]}: {part.strip()[:20]!r} is no patch; write numbers such as 3,7,10-13.")
        found += range(int(ends[0]), int(ends[1]) + 1)
    return found


def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="A folder in transformers format, NAME[@ALIAS|/VERSION], a hub name."),
    ],
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="Whose evaluation sets and corpus: a recipe's name, or a YAML file.")
    ] = "quickstart",
    source: terminal.Source = [],  # noqa: B006
    set_: terminal.Setting = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="The report; default: below the home.")] = None,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Ask models the evaluation sets of a recipe, and show their scores side by side.

    Any masked language models: their tokenizers may differ. What is finished is kept, so a comparison that was stopped
    goes on where it was.

    Example: maskmill compare quickstart bert-base-uncased --recipe my-recipe.yaml
    """
    from flows import compare, recipes
    from tasks import report

    home = terminal.home()
    words = ["maskmill", "compare", *models, "--recipe", recipe]
    words += [word for one in source for word in ("--source", one)] + [word for one in set_ for word in ("--set", one)]
    mill = recipes.load(recipe, source, set_)
    environment.reach_hub(any(not Path(expanded(one)).is_dir() for one in models))
    found = compare.compare(models, mill, home, terminal.store(home), shlex.join(words))
    file = (out or compare.place(found, home)).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, report.page(found).encode())
    terminal.as_json(report.as_json(found) | {"html": str(file)}) if as_json else compare.show(found, file)
