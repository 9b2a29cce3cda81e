"""A recipe's file, and the values of --set, as plain data: YAML, with what surprises people in it taken out."""

import re
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UsageError

LARGEST = 100_000
"""Values of a file; no recipe has as many."""


class Loader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win without a word; here that is an error with its line.

    As in YAML 1.2, on, off, yes and no are words (`compile: off`, `languages: [no]`), and 2:4 is no number of minutes.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Counts what aliases stand for, as often as they stand there: a few lines of them can fill any memory."""
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        node: Any = super().compose_node(parent, index)
        if alias and id(node) not in self._sizes:
            raise yaml.MarkedYAMLError(problem="an alias stands inside of what it stands for", problem_mark=mark)
        if not alias:
            inside = [] if isinstance(node, yaml.ScalarNode) else node.value
            parts = [part for one in inside for part in (one if isinstance(one, tuple) else (one,))]
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in parts)
        if self._sizes[id(node)] > LARGEST:
            raise yaml.MarkedYAMLError(problem=f"it has more than {LARGEST:,} values", problem_mark=mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as error:  # of a date that is none, say
            problem = f"{str(node.value)[:40]!r} cannot be read: {str(error)[:80]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} stands twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


WORDS = "tag:yaml.org,2002:str", re.compile(r"(?i:on|off|yes|no)$|[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?$")
Loader.yaml_implicit_resolvers = {
    first: [WORDS, *known] for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(path: Path) -> dict[str, Any]:
    """The settings in a file. Raises UsageError naming it, and the line where it is no YAML."""
    try:
        data = value(path.read_text(encoding="utf-8"))
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
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
