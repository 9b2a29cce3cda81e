"""What Prefect's automations tell a webhook: a run failed or crashed (Prefect's own events), a version was promoted.

deployments/automations.yaml has the automations with their words; the address is MASKMILL_WEBHOOK at `maskmill deploy`,
kept by the server in a block of its own, encrypted. The body is {"text": "…"}, as Slack, Mattermost and others read it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from flows import ui
from tasks.errors import UsageError

if TYPE_CHECKING:
    from tasks.promotion import Promotion

VARIABLE = "MASKMILL_WEBHOOK"
BLOCK = "maskmill-notices"
PROMOTED, ROLLED_BACK = "maskmill.promoted", "maskmill.rolled-back"


def webhook() -> UUID | None:
    """The block with the address: made anew from the variable, else the one that is there; None where there is none.

    Raises UsageError where the variable holds no web address.
    """
    from prefect import get_client
    from prefect.blocks.webhook import Webhook
    from prefect.exceptions import ObjectNotFound
    from prefect.types import SecretDict
    from pydantic import SecretStr

    url = os.environ.get(VARIABLE, "")
    if url and not url.startswith(("http://", "https://")):
        raise UsageError(f"{VARIABLE} must be an address that begins with https:// or http://.")
    if url:
        block = Webhook(method="POST", url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
        return UUID(str(block.save(BLOCK, overwrite=True)))
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(BLOCK, "webhook").id
        except ObjectNotFound:
            return None


def tell(home: Path, event: str, found: "Promotion") -> None:
    """Sends the event that the champion changed, where there is a Prefect server that could tell it on."""
    if not ui.reachable(home):
        return
    from prefect.events import emit_event
    from prefect.events.worker import EventsWorker

    name, verdict = found.version.name, found.decision.verdict
    resource = {"prefect.resource.id": f"maskmill.model.{name}", "prefect.resource.name": name}
    emit_event(event, resource, payload={"version": found.champion, "before": found.before, "verdict": verdict})
    EventsWorker.drain_all(timeout=5)
