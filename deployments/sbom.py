"""Writes sbom.json, what is installed as a CycloneDX list, and says which of it has known vulnerabilities.

    make sbom        installs cyclonedx-bom and pip-audit into a throwaway environment and calls this

Name, version, purl, licence and dependencies are those of the installed packages' own metadata. These hold no hash of
the archive that was installed; so each component has the sha256 of its RECORD, which in turn has one of each file.
Vulnerabilities are those of https://osv.dev. Where that cannot be reached, nothing is known of them, and this says so:
pip-audit by itself passes over what it finds nothing of, and then finds no vulnerabilities.

Exit status: 0 the list is written, and nothing is known against it, or nobody could be asked · 1 there are known
vulnerabilities.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORD = "maskmill:record:sha256"
SHOWN = 100
"""Characters of a vulnerability's description."""
DIGESTS = """
import hashlib, json
from importlib.metadata import distributions
print(json.dumps({f"{one.name}=={one.version}": hashlib.sha256(record.encode()).hexdigest()
                  for one in distributions() if (record := one.read_text("RECORD"))}))
"""
"""Runs in the environment that is listed."""


def write(tools: Path, python: Path, project: Path, to: Path) -> list[dict[str, Any]]:
    """Lists what is installed beside that interpreter; returns the components. Raises CalledProcessError."""
    words = [str(tools / "cyclonedx-py"), "environment", str(python), "--pyproject", str(project)]
    subprocess.run([*words, "--output-reproducible", "--output-format", "JSON", "--output-file", str(to)], check=True)
    found = subprocess.run([str(python), "-I", "-c", DIGESTS], check=True, capture_output=True, text=True)
    digests, bom = json.loads(found.stdout), json.loads(to.read_bytes())
    for component in bom["components"]:
        if digest := digests.get(f"{component['name']}=={component['version']}"):
            properties = component.setdefault("properties", [])
            properties.append({"name": RECORD, "value": digest})
    to.write_text(json.dumps(bom, indent=2, ensure_ascii=False) + "\n")
    return list(bom["components"])


def vulnerabilities(tools: Path, components: list[dict[str, Any]]) -> list[str] | None:
    """A line for each that is known; None where the service does not answer for all of them."""
    public = [one for one in components if one.get("purl", "").startswith("pkg:pypi/")]
    with tempfile.TemporaryDirectory() as folder:
        listed, answer = Path(folder) / "requirements.txt", Path(folder) / "found.json"
        # Without the local part of a version (2.13.0+cpu), which no list of vulnerabilities knows.
        lines = [f"{one['name']}=={one['version'].partition('+')[0]}\n" for one in public]
        listed.write_text("".join(sorted(lines)))
        words = [str(tools / "pip-audit"), "--requirement", str(listed), "--no-deps", "--disable-pip"]
        words += ["--vulnerability-service", "osv", "--format", "json", "--output", str(answer)]
        asked = subprocess.run([*words, "--progress-spinner", "off"], check=False, capture_output=True, text=True)
        if not answer.exists():
            print((asked.stderr.strip().splitlines() or ["no answer"])[-1], file=sys.stderr)
            return None
        known = json.loads(answer.read_bytes())["dependencies"]
    if any("skip_reason" in one for one in known) or len(known) < len(public):
        return None
    return [
        f"{one['name']} {one['version']}  {vulnerability['id']}  fixed in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}: {vulnerability['description'][:SHOWN]}"
        for one in known
        for vulnerability in one["vulns"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, required=True, help="bin of an environment with both tools")
    parser.add_argument("--python", type=Path, required=True, help="interpreter of the environment that is listed")
    parser.add_argument("--project", type=Path, default=Path(__file__).parents[1] / "pyproject.toml")
    parser.add_argument("--to", type=Path, default=Path("sbom.json"))
    given = parser.parse_args()
    components = write(given.tools, given.python, given.project, given.to)
    digest = hashlib.sha256(given.to.read_bytes()).hexdigest()
    print(f"{given.to}: {len(components)} components, sha256 {digest}")
    found = vulnerabilities(given.tools, components)
    if found is None:
        print("Known vulnerabilities: NOT LOOKED UP, https://api.osv.dev does not answer; run it again online.")
        return 0
    print("\n".join([f"Known vulnerabilities: {len(found)}", *found]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
