"""A recipe: the settings of the six stages in one YAML file, checked before anything runs.

Every key of a recipe is a field of a stage's Config class, so the classes are the only list of settings there is.
"""

import dataclasses
import difflib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, get_args, get_type_hints

import yaml

from flows import recipe_file
from flows.environment import CHECKOUT
from flows.recipe import Recipe as Recipe
from flows.recipe import kind
from flows.recipe_words import SOURCES, Path_, expected, no_values, shown, unknown, whole
from tasks import modalities
from tasks.errors import HIDDEN, MaskmillError, UsageError, without_queries, without_secrets
from tasks.evaluate_config import FILES, SETS
from tasks.folders import expanded
from tasks.sizes import DIMENSIONS

FOLDER = CHECKOUT / "deployments" / "recipes"


def names() -> list[str]:
    """The recipes that come with maskmill."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name_or_path: str) -> Path:
    """The file of a recipe: a name in deployments/recipes/, or a path. Raises UsageError naming what exists."""
    bundled, given = FOLDER / f"{name_or_path}.yaml", Path(expanded(name_or_path))
    if "/" not in name_or_path and os.path.isfile(bundled):  # of a name that is too long, too
        return bundled
    if os.path.isfile(given):
        return given.absolute()
    near = difflib.get_close_matches(name_or_path, names(), 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"There is no recipe {name_or_path!r}. {hint}"
        f"Recipes here: {', '.join(names())}; or give the path of a YAML file."
    )


def load(name_or_path: str, sources: Sequence[str] = (), overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    sources     replace corpus.sources where given (`--source`)
    overrides   "key.sub=value", the value in YAML (`--set`)

    Raises UsageError naming the file (or the --set), the key, and what was expected.
    """
    path = find(name_or_path)
    sources, overrides = ([_QUERIES.get(one, one) for one in given] for given in (sources, overrides))
    if hidden := [one for one in (*sources, *overrides) if HIDDEN in one]:
        raise UsageError(f"{hidden[0]}: the query of an address is not written down anywhere; give the whole address.")
    data = recipe_file.read(path)
    _spell_out_sources(data, path.parent)
    given: dict[Path_, str] = {}
    if sources:
        _put(data, ("corpus", "sources"), list(sources), "--source")
        given["corpus", "sources"] = "--source"
    for override in overrides:
        key, value = _parse(override)
        _put(data, key, value, f"--set {override}")
        given[key] = f"--set {override}"
    _size_alone(data, given)
    _spell_out_sources(data, Path.cwd())
    data.setdefault("name", path.stem)
    everything = " ".join([str(path), *given.values()])

    def origin(key: Path_, error: str = "") -> str:
        """Where a setting was given, for messages; without a key, where those were that the error names."""
        if key:
            return next((given[above] for above in given if key[: len(above)] == above), str(path))
        return " ".join(place for name, place in given.items() if ".".join(name) in error) or everything

    return _validate(data, origin)


def command(
    name_or_path: str,
    sources: Sequence[str] = (),
    overrides: Sequence[str] = (),
    force_from: str | None = None,
    wait: float | None = None,
    verb: str = "run",
) -> str:
    """The command that runs the same again, from any folder, ready for a shell. Queries of addresses are left out."""
    path = find(name_or_path)
    words = ["maskmill", verb, name_or_path if path.parent == FOLDER else str(path)]
    for source in sources:
        words += ["--source", _anchored(source, Path.cwd())]
    for override in overrides:
        words += ["--set", _from_any_folder(override, several=verb == "sweep")]
    if force_from:
        words += ["--from", force_from]
    if wait is not None:
        words += ["--wait", f"{wait:g}"]
    return without_queries(shlex.join(words))


def _from_any_folder(override: str, several: bool) -> str:
    """`key=value` with whole paths where it has some that start at the current folder."""
    key, _, text = _QUERIES.get(override, override).partition("=")
    each = [f"{key}={one}" for one in (values(text) if several else [text])]
    here, elsewhere = ([_spelled_out(one, folder) for one in each] for folder in (Path.cwd(), Path.cwd() / "elsewhere"))
    return override if here == elsewhere else f"{key}={','.join(json.dumps(one, ensure_ascii=False) for one in here)}"


def _spelled_out(override: str, folder: Path) -> Any:
    data: dict[str, Any] = {}
    key, value = _parse(override)
    _put(data, key, value, f"--set {override}")
    _spell_out_sources(data, folder)
    return _at(data, key)


def values(text: str) -> list[str]:
    """What stands between commas, where these are not inside brackets, braces or quotation marks."""
    found, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            found.append("")
            continue
        found[-1] += character
        if quote or character in "\"'":
            quote = "" if character == quote else quote or character
        else:
            depth += (character in "[{") - (character in "]}")
    return [value.strip() for value in found]


_QUERIES: dict[str, str] = {}


def to_be_written(given: Sequence[str]) -> list[str]:
    """Sources or settings without queries, for Prefect to keep; `load` of this process knows what they stand for."""
    written = []
    for one in given:
        bare = without_queries(one)
        if bare != one:
            bare += f" ({number})" if (number := [*_QUERIES.values(), one].index(one)) else ""
            _QUERIES[bare] = one
        written.append(bare)
    return written


def _spell_out_sources(data: dict[str, Any], folder: Path) -> None:
    """A source may be just its uri. Relative paths, also those of tokenizer and fork, start at `folder`: the recipe's
    own, or the current one."""
    vocabulary = data.get("vocabulary")
    if isinstance(vocabulary, dict) and isinstance(vocabulary.get("tokenizer"), str) and vocabulary["tokenizer"]:
        vocabulary["tokenizer"] = _anchored(vocabulary["tokenizer"], folder)
    pretrain = data.get("pretrain")
    if isinstance(pretrain, dict) and isinstance(pretrain.get("fork"), str) and os.sep in pretrain["fork"]:
        pretrain["fork"] = _anchored(pretrain["fork"], folder)
    _spell_out_evaluation(data.get("evaluate"), folder)
    if isinstance(data.get("beside"), dict):
        _spell_out_sources(data["beside"], folder)
    corpus = data.get("corpus")
    for key in SOURCES:
        sources = corpus.get(key) if isinstance(corpus, dict) else None
        if isinstance(corpus, dict) and isinstance(sources, list):
            sources = [{"uri": source} if isinstance(source, str) else source for source in sources]
            for source in sources:
                if isinstance(source, dict) and isinstance(source.get("uri"), str):
                    source["uri"] = _anchored(source["uri"], folder)
            corpus[key] = sources


def _spell_out_evaluation(evaluate: Any, folder: Path) -> None:
    """Files of evaluation sets: one may stand without a list, relative paths start at `folder`."""
    for key in SETS if isinstance(evaluate, dict) else ():
        entries = evaluate.get(key)
        for entry in entries if isinstance(entries, list) else ():
            for name in FILES if isinstance(entry, dict) else ():
                if name in entry:
                    entry[name] = _in_folder(entry[name], folder)
                    if name == "files" and isinstance(entry[name], str):
                        entry[name] = [entry[name]]


def _in_folder(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {label: _in_folder(file, folder) for label, file in files.items()}
    if isinstance(files, list):
        return [_in_folder(file, folder) for file in files]
    return os.path.abspath(folder / expanded(files)) if isinstance(files, str) and files else files


def _size_alone(data: dict[str, Any], given: Mapping[Path_, str]) -> None:
    """--set pretrain.size takes the place of the file's own dimensions, which would leave nothing of it."""
    if ("pretrain", "size") in given:
        for name in DIMENSIONS:
            if ("pretrain", name) not in given:
                data["pretrain"].pop(name, None)


def _anchored(uri: str, folder: Path) -> str:
    scheme, _, rest = uri.partition(":")
    if not uri.strip():
        raise UsageError("A source is empty; give a file, a folder, a glob, a URL or hf:NAME.")
    if scheme == "file" and rest.startswith("//"):
        uri = rest.removeprefix("//")
    elif "://" in uri or scheme == "installed-docs":
        return uri
    elif scheme == "hf":  # a folder where there is one, else a name on the hub
        return f"hf:{os.path.abspath(folder / rest)}" if os.path.exists(folder / rest) else uri
    return os.path.abspath(folder / expanded(uri))


def _parse(override: str) -> tuple[Path_, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {override!r} is not key=value, such as --set pretrain.steps=100.")
    try:
        return tuple(key.strip().split(".")), recipe_file.value(text)
    except yaml.YAMLError:
        raise UsageError(f"--set {override}: the value is not YAML; quote it, such as --set 'key=\"text\"'.") from None


def _put(data: dict[str, Any], key: Path_, value: Any, origin: str) -> None:
    for depth, part in enumerate(key[:-1], 1):
        if data.get(part) is None:
            data[part] = {}
        data = data[part]
        if isinstance(data, list):
            above = ".".join(key[:depth])
            raise UsageError(f"{origin}: {above} is a list; write it whole: {whole(above, key[-1], value)}.")
        if not isinstance(data, dict):
            raise UsageError(f"{origin}: {'.'.join(key[:depth])} is a value, it has no key {key[depth]!r}.")
    data[key[-1]] = value


@cache
def _adapter(modality: str, second: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # pydantic refuses settings for a bare dataclass, but hands those of a container down to the dataclasses inside.
    container: Any = GenericAlias(tuple, (kind(modality, second),))
    return TypeAdapter(container, config=ConfigDict(extra="forbid", coerce_numbers_to_str=True))


def _modalities(data: Mapping[str, Any]) -> tuple[str, str]:
    """The modality of a recipe, and that of a second one beside it."""
    beside = data.get("beside")
    second = str(beside.get("modality", modalities.TEXT)) if isinstance(beside, dict) else ""
    return str(data.get("modality", modalities.TEXT)), second


def _validate(data: dict[str, Any], origin: Any) -> Recipe:
    from pydantic import ValidationError

    try:
        of = kind(*(asked := _modalities(data)))
    except UsageError as error:
        raise UsageError(f"{origin(('modality',))}: {error}") from None

    try:
        text = json.dumps([data], allow_nan=False)
        json.dumps([data], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UsageError(
            "A source has a name that is not UTF-8; rename that file or folder, or give the folder above it."
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        key, what = next(no_values(data), ((), f"a recipe holds text, numbers, lists and mappings only ({error})"))
        raise UsageError(f"{origin(key)}: {'.'.join(key)}: {what}.") from None
    try:
        recipe: Recipe = _adapter(*asked).validate_json(text)[0]
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] == "missing")  # what is wrong before what is not there
        key = tuple(str(part) for part in first["loc"][1:])
        if first["type"] == "unexpected_keyword_argument":
            raise UsageError(f"{origin(key)}: {unknown(key, list(keys(of)))}") from None
        if first["type"] == "missing":
            raise UsageError(f"{origin(key[:-1])}: the setting {'.'.join(key)} is missing.") from None
        raise UsageError(f"{origin(key)}: {'.'.join(key)}: {expected(first)}.") from None
    except MaskmillError as error:
        raise UsageError(f"{without_secrets(origin((), str(error)))}: {error}") from None
    for key, value in leaves(data):
        if isinstance(value, bool) and not isinstance(_at(recipe, key), bool):  # pydantic would read `yes` as 1
            raise UsageError(f"{origin(key)}: {'.'.join(key)}: a number or a text is expected, not {shown(value)}.")
    return recipe


def leaves(data: Mapping[str, Any], above: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """(dotted path, value) of everything in nested mappings that is not a mapping itself."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key)), value


def _at(value: Any, key: Path_) -> Any:
    for part in key:
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def keys(of: Any = Recipe, above: Path_ = ()) -> Iterator[Path_]:
    """Every key that a recipe may have."""
    hints = get_type_hints(of)
    for entry in dataclasses.fields(of):
        yield (*above, entry.name)
        for inner in (hints[entry.name], *get_args(hints[entry.name])):
            if dataclasses.is_dataclass(inner):
                yield from keys(inner, (*above, entry.name))
