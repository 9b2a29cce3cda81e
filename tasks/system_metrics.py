"""What the machine is busy with while a stage runs: MLflow's own collectors, under MLflow's names ("system/…").

Its SystemMetricsMonitor asks the server after each sample and gives up for ever when one request fails, so only what it
collects is taken; the points go the way of all others, through the outbox. Of GPUs it knows where nvidia-ml-py is
installed. Which variables steer it: MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL (10 seconds), and
MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING, where `false` switches it off.
"""

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

ENABLED = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
EVERY = 10.0
"""Seconds between two samples."""


class Sampler:
    """A thread that takes a sample now and then. Its first one is taken after an interval: before, there is no load."""

    def __init__(self, take: Callable[[Mapping[str, float]], None]) -> None:
        """take    gets each sample, in the thread"""
        self._take, self._stopped = take, threading.Event()

    def start(self, uri: str) -> None:
        """Imports MLflow's collectors, in this thread, and starts; does nothing where that is switched off.

        uri     of MLflow; nobody is asked there, but without one it would make a database where we stand
        """
        if os.environ.get(ENABLED, "true").lower() in ("false", "0"):
            return
        from mlflow.system_metrics import system_metrics_monitor

        monitors: Any = system_metrics_monitor  # has no types
        monitor = monitors.SystemMetricsMonitor("", sampling_interval=EVERY, tracking_uri=uri)
        monitor.collect_metrics()  # the load is measured between two looks at it
        threading.Thread(target=self._run, args=(monitor,), name="system metrics", daemon=True).start()

    def stop(self) -> None:
        """At once; nothing that was taken is lost."""
        self._stopped.set()

    def _run(self, monitor: Any) -> None:
        while not self._stopped.wait(monitor.sampling_interval):
            try:
                for one in monitor.monitors:
                    one.clear_metrics()
                monitor.collect_metrics()
                self._take({f"system/{name}": value for name, value in monitor.aggregate_metrics().items()})
            except Exception:  # a device that went away: a run is worth more than its picture
                return
