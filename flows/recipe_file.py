"""A recipe's file, and the values of --set, as plain data: YAML, with what surprises people in it taken out."""

import re
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UsageError


class Loader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win without a word; here that is an error with its line.

    As in YAML 1.2, on, off, yes and no are words (`compile: off`, `languages: [no]`), and 2:4 is no number of minutes.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


WORDS = "tag:yaml.org,2002:str", re.compile(r"(?i:on|off|yes|no)$|[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?$")
Loader.yaml_implicit_resolvers = {
    first: [WORDS, *known] for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(path: Path) -> dict[str, Any]:
    """The settings in a file. Raises UsageError naming it, and the line where it is no YAML."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: this is not YAML ({error.problem}).") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as a recipe: {error}.") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a recipe is a mapping of settings such as `pretrain: {{steps: 100}}`.")
    return data


def value(text: str) -> Any:
    """What stands behind the = of --set. Raises yaml.YAMLError."""
    return yaml.load(text, Loader)
