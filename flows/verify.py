"""Checks everything again: every byte of every artifact and of what was registered on this machine, and every stored
mask against the sampler that drew it."""

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.parts import INPUTS
from tasks import artifacts, copies, registry, shards
from tasks.artifacts import Store
from tasks.errors import DataError, UsageError
from tasks.progress import progress


@dataclass
class Report:
    """What was checked, and what is wrong."""

    artifacts: dict[str, int] = field(default_factory=dict)
    """Stage -> artifacts checked."""
    damaged: int = 0
    """Artifacts with findings."""
    bytes: int = 0
    findings: list[str] = field(default_factory=list)
    """One line each, naming the file."""
    notes: list[str] = field(default_factory=list)
    """What was not checked, and why; no damage."""

    def page(self) -> dict[str, Any]:
        """The report for programs."""
        return asdict(self)


def verify(store: Store, stage: str | None = None) -> Report:
    """Checks the artifacts of a stage, or all of them. Raises UsageError for a stage that does not exist."""
    if stage and stage not in INPUTS:
        raise UsageError(f"There is no stage {stage!r}; the stages are {', '.join(INPUTS)}.")
    folders = [(name, folder) for name in INPUTS if stage in (None, name) for folder in store.folders(name)]
    report = Report()
    with progress("verify", len(folders), "artifacts") as bar:
        for name, folder in folders:
            report.artifacts[name] = report.artifacts.get(name, 0) + 1
            bar.note(f"{name} {folder.name[:8]}")
            findings = _findings(name, folder, report)
            report.findings += findings
            report.damaged += bool(findings)
            with suppress(OSError):  # a store that cannot be written to can still be checked
                artifacts.mark(folder, findings)
            bar.advance()
    return report


def _findings(stage: str, folder: Path, report: Report) -> list[str]:
    try:
        manifest = artifacts.load(folder)
        findings = artifacts.verify(manifest)
        if stage == shards.STAGE and manifest.identity.version != shards.VERSION:
            report.notes.append(f"{folder}: its masks are of version {manifest.identity.version}; not drawn again")
        elif stage == shards.STAGE:
            findings += shards.verify_masks(manifest)
        elif stage == registry.STAGE:
            paths = copies.damaged(manifest, whole=True)
            findings += [f"{path}: its bytes are not those that were registered" for path in paths]
        report.bytes += manifest.bytes
        return findings
    except (DataError, OSError) as error:
        return [str(error)]


def show(report: Report) -> None:
    """The report for people, on stdout."""
    for line in (*report.notes, *report.findings):
        print(line)
    number = sum(report.artifacts.values())
    checked = ", ".join(f"{number} {name}" for name, number in report.artifacts.items()) or "nothing is there yet"
    verdict = f"{report.damaged} of {number} artifacts damaged; checked" if report.findings else "all intact"
    print(f"{verdict}: {checked}; {report.bytes / 1e6:,.1f} MB hashed.")
    if report.findings:
        print("Run the flow again: what is damaged is made anew, the rest is kept.")
