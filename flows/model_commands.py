"""The commands about models that are there: ask them, compare them."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows import environment, terminal
from tasks.artifacts import write_atomic
from tasks.progress import say


def predict(
    text: Annotated[str, typer.Argument(help="A text with one or more [MASK]; for --embedding any text.")],
    model: Annotated[
        str | None, typer.Option(metavar="NAME[@ALIAS|/VERSION]", help="Default: the champion of the only model.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Predictions for each [MASK].")] = 5,
    targets: Annotated[str, typer.Option(metavar="WORDS", help="Rank only these, each one token.")] = "",
    embedding: Annotated[bool, typer.Option("--embedding", help="The text as one vector instead.")] = False,
    as_json: terminal.Json = False,
    debug: terminal.Debug = False,
) -> None:
    """Fill the masks of a text with a registered model, or turn the text into a vector.

    Which version answers is said on stderr; with --json in model, version, aliases and weights (their digest), beside
    masks or embedding.

    Example: maskmill predict "Returns a [MASK] of the array." --top 3
    """
    from flows import summary
    from tasks import serving

    environment.settle(terminal.home())
    environment.reach_hub(False)
    output = "embedding" if embedding else "fill-mask"
    served, answer = serving.ask(text, model, {"top_k": top, "targets": targets, "output": output})
    if as_json:
        terminal.as_json(served.page() | {"embedding" if embedding else "masks": answer})
        return
    say(f"{served}:")
    if embedding:
        print(*(f"{value:.6f}" for value in answer))
    else:
        summary.show_predictions(text, answer)


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
    environment.reach_hub(any(not Path(one).expanduser().is_dir() for one in models))
    found = compare.compare(models, mill, home, terminal.store(home), shlex.join(words))
    file = (out or compare.place(found, home)).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, report.page(found).encode())
    terminal.as_json(report.as_json(found) | {"html": str(file)}) if as_json else compare.show(found, file)
