"""What is of text in a registered model: what serves it, what its card says of it, how it is asked.

Another modality has a module with the same names: see `modalities.Modality.front`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .artifacts import Manifest
from .card import code, without_licence
from .errors import UsageError
from .results import Outcome
from .sheet import in_markdown

BESIDE: tuple[str, ...] = ()
"""Files of this package that a model needs in its folder."""
REQUIREMENTS = ("mlflow", "torch", "tokenizers", "safetensors")
"""What fill_mask.py imports; written out, since MLflow's search for it takes 30 s."""
DESCRIPTION = "Fills [MASK] in a text."
MASK = "[MASK]"
HELD_OUT, BYTES = "Held-out text", "text"
CARDS = {"corpus": "corpus_card", "vocabulary": "vocabulary_card"}
"""Stage -> module that writes its card.json as Markdown."""
WANTED = "a text"


def served() -> Any:
    """The model that is asked, before it has opened a folder."""
    from .fill_mask import FillMask

    return FillMask()


def example(evaluate: Manifest, vocabulary: Manifest) -> tuple[list[Any], dict[str, Any]]:
    """Input and parameters with which a model is tried once, and which its page shows."""
    return [sample(evaluate)], {"top_k": 5, "targets": "", "output": "fill-mask"}


def sample(evaluate: Manifest) -> str:
    """A text with a mask."""
    predictions = evaluate.facts["predictions"]
    return str(predictions[0]["text"]) if predictions else "A text with a [MASK]."


def warmth(model: Any) -> list[Any]:
    """Something that any model can be asked."""
    return ["A [MASK]."]


def tried(model: Any) -> list[float]:
    """Probabilities that a model gives, as MLflow has loaded it, when it is asked for anything."""
    masks = model.predict(["A [MASK]."], params={"top_k": 3})[0]
    return [one["probability"] for ranked in masks for one in ranked]


def try_it(evaluate: Manifest) -> list[str]:
    """What comes after `maskmill predict` in an example."""
    predictions = evaluate.facts["predictions"]
    return [predictions[0]["text"] if predictions else "A [MASK]."]


# The card.


def header(vocabulary: Mapping[str, Any]) -> str:
    """What stands above the card for machines."""
    mask = vocabulary.get("special_names", {}).get("mask", MASK).replace("'", "''")
    return f"---\nlibrary_name: transformers\npipeline_tag: fill-mask\nmask_token: '{mask}'\n---"


def about(parents: Mapping[str, Manifest]) -> str:
    """What the model is."""
    return (
        f"A masked language model (ModernBERT layout) of {parents['pretrain'].facts['parameters']:,} parameters. "
        f"It fills {_mask(parents['vocabulary'].facts)} in texts of up to {parents['shards'].facts['length']} tokens."
    )


def measured(facts: Mapping[str, Any]) -> str:
    """What the table of scores is of."""
    return (
        "Masked cross-entropy in nats per masked token on held-out documents, masks frozen; the unigram baseline uses "
        "the train split's counts with add-one smoothing, the bigram one its left neighbour, the untrained model is "
        "this one before its first step. In brackets: 95 % intervals (bootstrap over documents)."
    )


def exposed(one: Outcome) -> Iterator[str]:
    """What of a task's examples stands in the train split."""
    if one.exposure and one.exposure.looked_for:
        yield (
            f"{in_markdown(one.title)}: {one.exposure.found:,} of {one.exposure.looked_for:,} examples of 13 words "
            "or more share 13 words in a row with the train split."
        )


def predictions(predictions: Sequence[Mapping[str, Any]]) -> str:
    """Examples of what it fills in."""
    lines = []
    for prediction in predictions:
        lines.append(f"- {code(prediction['text'])}")
        for ranked in prediction["masks"]:
            lines.append("  - " + ", ".join(f"{code(it['token'].strip())} {it['probability']:.1%}" for it in ranked))
    return "\n".join(lines)


def learnt(parents: Mapping[str, Manifest]) -> list[str]:
    """What the vocabulary is."""
    facts = parents["vocabulary"].facts
    kind, size, reserved = facts.get("kind", "byte-level BPE"), facts["size"], facts.get("reserved", 0)
    origin = "an existing tokenizer" if facts.get("source") == "adopted" else "learnt from the train split"
    of = facts.get("sample", {})
    if of and not of["whole"]:
        origin = f"learnt from a sample of the train split, about {of['bytes_asked']:,} bytes"
    kept = f" ({reserved:,} of them reserved)" if reserved else ""
    return [f"- vocabulary: {kind}, {size:,} tokens{kept}, {origin}"]


def use(name: str, parents: Mapping[str, Manifest]) -> str:
    """How it is loaded."""
    return "\n".join(
        [
            "```python",
            "import mlflow",
            f'model = mlflow.pyfunc.load_model("models:/{name}@champion")',
            'model.predict(["A text with a [MASK]."], params={"top_k": 3})',
            "```",
            "The folder `artifacts/model` of a version loads with `transformers` (`AutoModelForMaskedLM`, "
            "`AutoTokenizer`), without custom code.",
        ]
    )


def limits(parents: Mapping[str, Manifest]) -> str:
    """What it cannot do."""
    silent = without_licence(parents["corpus"])
    asked = f" None is noted for {', '.join(map(code, silent))}: ask before you pass the model on." if silent else ""
    return (
        "It knows what its corpus says, right or wrong, and no more. It fills in tokens; it does not answer, and its "
        f"probabilities are not calibrated. Texts of more than {parents['shards'].facts['length']} tokens it cannot "
        f"read. Licences and rights of the corpus's texts apply.{asked}"
    )


def _mask(vocabulary: Mapping[str, Any]) -> str:
    name = vocabulary.get("special_names", {}).get("mask", MASK)
    return "`[MASK]`" if name == MASK else f"{code(name)} (`[MASK]` in `maskmill predict` and the pyfunc)"


# A question.


def check(text: Any, params: Mapping[str, Any]) -> None:
    """Raises UsageError for what is known to be wrong at once; with the model it would take seconds.

    The mask of any vocabulary is called [MASK], <mask> or the like: a text without a bracket holds none.
    """
    if not params.get("output", "").startswith("emb") and not set("[<") & set(text):
        raise UsageError(f"The text holds no {MASK}; put one where a token is to be filled in.")


def explained(sentence: str) -> str:
    """What the model says of the only text of a request."""
    return re.sub(r"^Text 0\b", "The text", sentence)
