"""Processes that run the flow, and what they tell MLflow. Shared by several test modules."""

from tasks.delivery import Delivery
from tasks.outbox import Outbox
from tasks.sender import Sender


def spool(first, last, attempt):
    """Lines as the trainer writes them: the clock tells attempts apart, and every fifth step has another metric."""
    return [
        {
            "step": n,
            "timestamp_ms": 1000 * attempt + n,
            "metrics": {"loss": 1 / n} | ({"valid": n} if n % 5 == 0 else {}),
        }
        for n in range(first, last)
    ]


class Attempt:
    """A process that runs the flow, without the thread: `sender.round()` is called where the thread would call it."""

    def __init__(self, server, folder, run="r", experiment=lambda name: "0"):
        head = {
            "do": "open",
            "stage": "",
            "run": run,
            "name": run,
            "experiment": "e",
            "tags": {},
            "address": "",
            "at": 1,
        }
        self.outbox = Outbox.create(folder, head)
        self.sender = Sender(self.outbox, lambda head: Delivery(server, experiment, head), "here")

    def tell(self, *records):
        self.outbox.append(*({"do": "metrics", "stage": "pretrain", **record} for record in records))

    def open(self):
        self.outbox.append({"do": "open", "stage": "pretrain", "at": 2})

    def end(self, status="FINISHED"):
        self.outbox.append(*({"do": "end", "stage": it, "status": status, "at": 3} for it in ("pretrain", "")))

    def die(self):
        self.outbox.close()
