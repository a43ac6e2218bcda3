"""What a server counts, as Prometheus reads it; over all workers, if they were told of a folder to share.

prometheus_client shares through files in the folder that the environment variable PROMETHEUS_MULTIPROC_DIR names when
it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

from search_gym.plugins import require

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one worker; docs/server.md explains every name."""

    def __init__(self) -> None:
        """Raises MissingDependencyError: prometheus-client is not installed."""
        prometheus = require("prometheus_client", extra="server")
        registry = self._registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "search_gym_requests", "Answered requests to /retrieve, by HTTP status.", ["status"], registry=registry
        )
        self.queries = prometheus.Counter("search_gym_queries", "Queries that were searched for.", registry=registry)
        self.documents = prometheus.Counter("search_gym_documents", "Documents in answers.", registry=registry)
        self.abandoned = prometheus.Counter(
            "search_gym_abandoned_requests", "Requests whose client left before the search began.", registry=registry
        )
        self.request_seconds = prometheus.Histogram(
            "search_gym_request_seconds",
            "Seconds from a request's headers to its answer, of requests with documents.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.search_seconds = prometheus.Histogram(
            "search_gym_search_seconds", "Seconds of the retriever's search.", buckets=_BUCKETS, registry=registry
        )
        gauge = {"registry": registry, "multiprocess_mode": "livesum"}
        self.waiting = prometheus.Gauge("search_gym_waiting_requests", "Requests that wait for a thread.", **gauge)
        self.running = prometheus.Gauge("search_gym_running_requests", "Requests that are searched for.", **gauge)
        self.workers = prometheus.Gauge("search_gym_workers", "Processes that serve.", **gauge)
        self.workers.set(1)

    def text(self) -> bytes:
        """All of them, summed over the workers, in Prometheus' text format."""
        prometheus = require("prometheus_client", extra="server")
        registry = self._registry
        if MULTIPROCESS in os.environ:
            registry = prometheus.CollectorRegistry()
            require("prometheus_client.multiprocess", extra="server").MultiProcessCollector(registry)
        return prometheus.generate_latest(registry)


def forget_worker(pid: int, folder: Path) -> None:
    """Take the gauges of a worker that has ended out of ``folder``; its counters stay."""
    require("prometheus_client.multiprocess", extra="server").mark_process_dead(pid, str(folder))
