"""make sbom: what is installed is listed with licences and digests, and a service that is away is no clean bill."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments import sbom

LISTED = [
    {"name": "pytest", "version": pytest.__version__, "purl": f"pkg:pypi/pytest@{pytest.__version__}"},
    {"name": "torch", "version": "2.13.0+cpu", "purl": "pkg:pypi/torch@2.13.0%2Bcpu"},
]
CLEAN = {"name": "pytest", "version": "1", "vulns": []}
BAD = {"name": "torch", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"], "description": "It leaks."}]}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found"}
TOOL = f"""#!{sys.executable}
import sys
at = sys.argv.index(OPTION) + 1
if ANSWER:
    open(sys.argv[at], "w").write(ANSWER)
assert "--requirement" not in sys.argv or "torch==2.13.0\\n" in open(sys.argv[2]).read()
"""


def tool(folder: Path, name: str, option: str, answer: Any) -> Path:
    path = folder / name
    text = json.dumps(answer) if answer else ""
    path.write_text(TOOL.replace("OPTION", repr(option)).replace("ANSWER", repr(text)))
    path.chmod(0o755)
    return folder


def test_each_component_has_the_digest_of_its_record(tmp_path: Path) -> None:
    tools = tool(tmp_path, "cyclonedx-py", "--output-file", {"components": LISTED})
    found = sbom.write(tools, Path(sys.executable), tmp_path / "pyproject.toml", tmp_path / "sbom.json")
    assert json.loads((tmp_path / "sbom.json").read_text())["components"] == found
    (digest,) = found[0]["properties"]
    assert digest["name"] == sbom.RECORD and len(digest["value"]) == 64


@pytest.mark.parametrize(
    "answer, expected",
    [
        ([CLEAN, {**BAD, "vulns": []}], []),
        ([CLEAN, BAD], ["torch 2  CVE-1  fixed in 3: It leaks."]),
        ([CLEAN, SKIPPED], None),  # pip-audit says "no known vulnerabilities" then
        ([CLEAN], None),
        (None, None),
    ],
)
def test_what_nobody_was_asked_about_is_not_called_safe(answer: Any, expected: Any, tmp_path: Path) -> None:
    tools = tool(tmp_path, "pip-audit", "--output", {"dependencies": answer} if answer else None)
    assert sbom.vulnerabilities(tools, LISTED) == expected
