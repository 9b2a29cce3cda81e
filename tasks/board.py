"""A registered model as the contest sees it: who is champion, who stands, who is better; and how a decision is said.

Tag `gate` says in a word or two where a version stands: contender (being decided), champion, was champion,
rolled back, or why it was refused. Evidence (scores.arrow) lies beside the version's model; tag `scores` has its
sha256.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from . import evidence, gate, modalities
from .artifacts import file_digest
from .contest import contend
from .errors import DataError, MaskmillError
from .gate import Decision, Evidence, Rule
from .manifests import json_of
from .progress import say
from .versions import CHAMPION, PREVIOUS, Version, brought, load_model, version_from

if TYPE_CHECKING:
    from mlflow import MlflowClient

STANDS, WON, WAS, ROLLED_BACK = "contender", "champion", "was champion", "rolled back"
GATE, PERSON = "gate", "person"
"""Who decided."""
REPORT = "gate_report.json"
FOLDER = "artifacts/gate"
"""Where a version has its evidence."""
COMPARED = ("delta", "interval", "against", "against_nats")
"""Tags that a decision has where two models were compared."""


def attach(client: "MlflowClient", version: Version, scores: Path) -> None:
    """Puts evidence beside a version's model, in the place of what was there."""
    client.log_model_artifact(version.source.removeprefix("models:/"), str(scores), FOLDER)
    client.set_model_version_tag(version.name, str(version.version), "scores", file_digest(scores))


class Board:
    """A registered model, as contest.py sees it: who is champion, who stands, who is better, and how that is said."""

    def __init__(self, client: "MlflowClient", home: Path, name: str) -> None:
        self.client, self.home, self.name = client, home, name
        self.said: dict[int, Decision] = {}
        """What was written down of each version."""
        self._evidence: dict[int, dict[str, Evidence]] = {}
        self._decisions: dict[tuple[int, int | None], Decision] = {}
        self._answers: dict[int, str] = {}

    # What is there.

    def version(self, number: int) -> Version:
        return version_from(self.client.get_model_version(self.name, str(number)))

    def aliased(self, alias: str) -> int | None:
        number = self.client.get_registered_model(self.name).aliases.get(alias)
        return None if number is None else int(number)

    def champion(self) -> int | None:
        return self.aliased(CHAMPION)

    def standing(self) -> dict[int, bool]:
        found = self.client.search_model_versions(f"name = '{self.name}'")
        return {int(one.version): one.tags["gate"] == WON for one in found if one.tags.get("gate") in (STANDS, WON)}

    def rule(self, version: Version) -> Rule:
        """The rule that a version was registered with."""
        try:
            found = Rule(**json_of(version.tags.get("rule", "{}")))
            right = all(isinstance(value, int | float) for value in vars(found).values())
        except (ValueError, TypeError):
            right = False
        if not right:
            raise DataError(f"{version.name} version {version.version} has a damaged tag `rule`; register it again.")
        return found

    def evidence(self, version: Version) -> dict[str, Evidence]:
        """By label; empty for a version that was registered before there was a gate. Raises DataError."""
        if version.version not in self._evidence:
            found: dict[str, Evidence] = {}
            if expected := version.tags.get("scores"):
                with TemporaryDirectory() as folder:
                    path = brought(version, self.home, Path(folder), f"{FOLDER}/{evidence.FILE}")
                    if file_digest(path) != expected:
                        raise DataError(
                            f"{FOLDER}/{evidence.FILE} of {self.name} version {version.version} is not the file that "
                            f"was registered; maskmill promote {self.name}/{version.version} with the store makes it."
                        )
                    found = evidence.read(path)
            self._evidence[version.version] = found
        return self._evidence[version.version]

    # What the rule says.

    def stand(self, version: int) -> None:
        self._tag(version, gate=STANDS)

    def beats(self, version: int, champion: int | None) -> bool:
        return self.decision(version, champion).promoted

    def decision(self, version: int, champion: int | None) -> Decision:
        """The rule's, and a try whether the model answers at all."""
        if (version, champion) not in self._decisions:
            found = self._ruled(self.version(version), self.version(champion) if champion else None)
            if found.promoted and (trouble := self._trouble(version)):
                found = replace(found, promoted=False, kind=gate.NO_ANSWER, reason=trouble)
            self._decisions[version, champion] = found
        return self._decisions[version, champion]

    def _ruled(self, challenger: Version, champion: Version | None) -> Decision:
        rule, against = self.rule(challenger), f"version {champion.version}" if champion else ""
        try:
            mine = self.evidence(challenger)
            if champion is None:
                return gate.first(mine.get("test"), rule)
            theirs = self.evidence(champion)
        except DataError as error:
            return Decision(champion is None, gate.NOT_COMPARED, str(error), rule=rule)
        beside = gate.opposite(mine, theirs, champion.tags.get("pretrain", ""))
        without = f"version {challenger.version}" if not mine else "" if theirs else against
        why = f"{without} was registered without scores" if without else f"{against} was scored on another test set"
        return gate.decide(mine.get("test"), beside, rule, against, why)

    def _trouble(self, version: int) -> str:
        """Why the registered model cannot be used; "" where it fills a mask."""
        if version not in self._answers:
            self._answers[version] = smoke(
                f"{self.name}/{version}", self.home, self.version(version).tags.get("modality", modalities.TEXT)
            )
        return self._answers[version]

    # What is written.

    def enter(self, number: int) -> Decision:
        """Lets a version stand. Returns what was decided of it."""
        contend(self, number)
        if number not in self.said:  # a promotion that ran at once found it and crowned it
            before = self.version(number).tags.get("replaced", "")
            self.said[number] = self.decision(number, int(before) if before else None)
        return self.said[number]

    def crown(self, version: int, champion: int | None, before: int | None) -> None:
        self.record(version, self.decision(version, champion), champion)
        self._move(version, before)

    def won(self, version: int) -> None:
        self._tag(version, gate=WON)

    def lost(self, version: int, champion: int | None) -> None:
        said = self.decision(version, champion)
        self.record(version, said, champion)
        self._tag(version, gate=said.kind)
        self._by_hand(champion)

    def replaced(self, version: int, champion: int | None) -> None:
        """A version that is champion no more does not go on saying so."""
        verdict = self.version(version).tags.get("verdict", "")
        if not verdict.startswith("was CHAMPION"):
            verdict = f"was CHAMPION until v{champion}: {verdict.removeprefix('CHAMPION').lstrip(': ')}"
        self._tag(version, gate=WAS, verdict=verdict)
        self._first_line(version, verdict)

    def force(self, number: int, why: str) -> Decision:
        """A person's decision; the report has the gate's, too."""
        before = self.champion()
        said = self.decision(number, before)
        reason = f"by force, {why} (the gate: {said.verdict})"
        said = replace(said, promoted=True, kind=gate.FORCED, reason=reason)
        self.record(number, said, before, PERSON, why)
        self._move(number, before)
        won = {version for version, won in self.standing().items() if won}
        self._tag(number, gate=WON)
        for one in (won | ({before} if before else set())) - {number}:
            self.replaced(one, number)
        return said

    def roll_back(self, now: int, before: int, why: str) -> Decision:
        """A person's decision: `before` is champion again, and `previous` what that once replaced."""
        because = f": {why}" if why else ""
        goes = Decision(False, ROLLED_BACK, f"to version {before}{because}", rule=self.rule(self.version(now)))
        comes = Decision(True, WON, f"again, after version {now}{because}", rule=self.rule(self.version(before)))
        self.record(now, goes, before, PERSON, why)
        self._tag(now, gate=ROLLED_BACK)
        self.record(before, comes, now, PERSON, why)
        self._tag(before, gate=WON)
        earlier = self.version(before).tags.get("replaced", "")
        if earlier in map(str, self._numbers()):
            self.client.set_registered_model_alias(self.name, PREVIOUS, earlier)
        else:
            self.client.delete_registered_model_alias(self.name, PREVIOUS)
        self.client.set_registered_model_alias(self.name, CHAMPION, str(before))
        return comes

    def record(self, number: int, decision: Decision, against: int | None, by: str = GATE, why: str = "") -> None:
        """Tags, first line of the page, report."""
        version = self.version(number)
        tags = {"verdict": decision.verdict, "by": by} | _compared(decision, against)
        for name in COMPARED:
            if name in version.tags and name not in tags:
                self.client.delete_model_version_tag(self.name, str(number), name)
        self._tag(number, **{name: value for name, value in tags.items() if version.tags.get(name) != value})
        self._first_line(number, decision.verdict)
        self._report(version, {"against": against, "by": by, "why": why} | decision.as_json())
        self.said[number] = decision

    def _report(self, version: Version, page: Mapping[str, Any]) -> None:
        """Into the version's run; decisions before this one go along."""
        from mlflow.exceptions import MlflowException

        whole = {"model": self.name, "version": version.version, "time": time.strftime("%FT%TZ", time.gmtime()), **page}
        try:
            if any(one.path == REPORT for one in self.client.list_artifacts(version.run)):
                with TemporaryDirectory() as folder:
                    path = Path(self.client.download_artifacts(version.run, REPORT, folder))
                    last = dict(json_of(path.read_bytes()))
                whole["earlier"] = [*last.pop("earlier", []), last]
            self.client.log_text(version.run, json.dumps(whole, indent=1, ensure_ascii=False), REPORT)
        except (MlflowException, ValueError, TypeError) as error:  # somebody deleted the run, or changed the report
            said = (str(error).splitlines() or [""])[0]
            say(f"{self.name} version {version.version}: its run takes no {REPORT} ({said}); its tags say the same")

    def _move(self, version: int, before: int | None) -> None:
        """The aliases; `champion` last."""
        if before is not None and before != version:
            self._tag(version, replaced=str(before))
            self.client.set_registered_model_alias(self.name, PREVIOUS, str(before))
        self.client.set_registered_model_alias(self.name, CHAMPION, str(version))

    def _by_hand(self, number: int | None) -> None:
        """A champion that does not stand: a person moved the alias."""
        tags = self.version(number).tags if number else {}
        if number and tags.get("gate") not in (STANDS, WON):
            verdict = tags.get("verdict", "")
            if not verdict.startswith("CHAMPION"):
                verdict = f"CHAMPION by hand; {verdict}"
                self._first_line(number, verdict)
            self._tag(number, gate=WON, verdict=verdict)

    def _first_line(self, number: int, verdict: str) -> None:
        page = str(self.client.get_model_version(self.name, str(number)).description or "")
        rest = page.partition("\n")[2]
        self.client.update_model_version(self.name, str(number), description=f"v{number} {verdict}\n{rest}")

    def _tag(self, number: int, **tags: str) -> None:
        for name, value in tags.items():
            self.client.set_model_version_tag(self.name, str(number), name, value)

    def _numbers(self) -> set[int]:
        return {int(one.version) for one in self.client.search_model_versions(f"name = '{self.name}'")}


def _compared(decision: Decision, against: int | None) -> dict[str, str]:
    """Tags of a comparison, as short as the registry's table shows them."""
    tags = {"against": f"version {against}"} if against else {}
    if decision.difference is not None and decision.low is not None and decision.high is not None:
        unit = decision.measure.split()[0]
        tags |= {"delta": f"{decision.difference:+.3f} {unit}"}
        tags |= {"interval": f"{decision.low:+.3f} to {decision.high:+.3f}"}
        tags |= {"against_nats": f"{decision.champion:.6f}"} if decision.measure == gate.NATS else {}
    return tags


def smoke(spec: str, home: Path, modality: str = modalities.TEXT) -> str:
    """Why a registered model cannot be used; "" where, loaded from the registry, it fills a mask."""
    try:
        front = modalities.module(modalities.MODALITIES[modality].front)
        probabilities = front.tried(load_model(spec, home))
    except MaskmillError as error:
        return str(error)
    except Exception as error:  # whatever a model of another version of the libraries raises
        return f"it cannot fill a mask: {(str(error).splitlines() or [type(error).__name__])[0]}"
    if not probabilities or not all(math.isfinite(one) for one in probabilities):
        return "it fills a mask with probabilities that are not finite"
    return ""
