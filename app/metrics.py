"""What Prometheus is told: counted where it happens, or looked up when it is asked for.

Labels take no value from a client: routes, statuses and error types are lists of ours, names of
migrations are those of the sets that are served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.errors import STATUSES
from app.jobs.delivery import Attempt
from app.request_facts import RequestFacts
from app.run_facts import RunFacts

logger = logging.getLogger(__name__)

PREFIX = "migrate_ckpt_"

# The usual ones end at ten seconds; a run may take ten minutes.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# There is one series of these for each migration.
MIGRATION_SECONDS = (0.01, 0.1, 1, 10, 60, 600)
BYTES = tuple(10.0**power for power in range(4, 12))
MEMORY_BYTES = tuple(2.0**power for power in range(24, 37, 2))


@dataclass(frozen=True, slots=True)
class Live:
    """What is looked up for each scrape.

    Attributes:
        name: without the prefix.
        description: what it is.
        labels: their names.
        read: gives the value for each combination of the labels' values.
    """

    name: str
    description: str
    labels: tuple[str, ...]
    read: Callable[[], Mapping[tuple[str, ...], float]]


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self, live: Iterable[Live] = ()) -> None:
        live = tuple(live)
        self.registry = CollectorRegistry()
        # The labels of each of ours, by its name.
        self.labels = {PREFIX + one.name: one.labels for one in live}
        self._requests = self._counter(
            "requests", "Requests that were answered.", "route", "status", "error_type"
        )
        self._request_seconds = self._histogram(
            "request_duration_seconds",
            "From the head of a request to the end of its answer.",
            SECONDS,
            "route",
        )
        self._runs = self._counter(
            "runs", "Runs that have ended.", "action", "outcome", "error_type"
        )
        self._run_seconds = self._histogram(
            "run_duration_seconds", "From a run's turn to its end.", SECONDS, "action"
        )
        self._queue_seconds = self._histogram(
            "queue_wait_seconds", "From the end of an upload to its run's turn.", SECONDS
        )
        self._input_bytes = self._histogram(
            "input_bytes", "The size of a checkpoint that came in.", BYTES
        )
        self._output_bytes = self._histogram(
            "output_bytes", "The size of a migrated checkpoint.", BYTES
        )
        self._peak_bytes = self._histogram(
            "run_peak_memory_bytes",
            "The most memory that a run was seen to hold, without mapped pages of files.",
            MEMORY_BYTES,
        )
        self._migrations = self._counter(
            "migrations_run", "Migrations that were run.", "set", "migration", "outcome"
        )
        self._migration_seconds = self._histogram(
            "migration_duration_seconds",
            "What a migration took by itself.",
            MIGRATION_SECONDS,
            "set",
            "migration",
        )
        self._deliveries = self._counter(
            "callback_attempts",
            "Attempts to tell of a job's end: delivered, failed, given_up.",
            "outcome",
        )
        self.registry.register(LiveCollector(live))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def observe_request(self, facts: RequestFacts) -> None:
        error_type = facts.error_type if facts.error_type in STATUSES else ""
        self._requests.labels(facts.route, str(facts.status), error_type).inc()
        self._request_seconds.labels(facts.route).observe(facts.seconds)

    def observe_run(self, run: RunFacts) -> None:
        self._runs.labels(run.action, run.outcome, run.error_type).inc()
        self._queue_seconds.observe(run.queue_seconds)
        self._input_bytes.observe(run.input_bytes)
        if run.seconds is not None:
            self._run_seconds.labels(run.action).observe(run.seconds)
        if run.output_bytes is not None:
            self._output_bytes.observe(run.output_bytes)
        if run.peak_bytes:
            self._peak_bytes.observe(run.peak_bytes)
        if run.migration_set is not None:
            self._observe_migrations(run, run.migration_set.name)

    def observe_delivery(self, attempt: Attempt) -> None:
        outcome = "failed" if attempt.delay_seconds is not None else "given_up"
        self._deliveries.labels("delivered" if attempt.is_delivered else outcome).inc()

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that is asked for, and its media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def _observe_migrations(self, run: RunFacts, set_name: str) -> None:
        succeeded = {timing.name for timing in run.migrations} - {run.failed_migration}
        for name in succeeded:
            self._migrations.labels(set_name, name, "succeeded").inc()
        if run.failed_migration is not None:
            self._migrations.labels(set_name, run.failed_migration, "failed").inc()
        for timing in run.migrations:
            self._migration_seconds.labels(set_name, timing.name).observe(timing.seconds)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        self.labels[f"{PREFIX}{name}_total"] = labels
        return Counter(PREFIX + name, description, labels, registry=self.registry)

    def _histogram(
        self, name: str, description: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        self.labels[PREFIX + name] = labels
        return Histogram(
            PREFIX + name, description, labels, registry=self.registry, buckets=buckets
        )


class LiveCollector(Collector):
    """Looks up what there is now; what cannot be looked up is left out, and harms nothing else."""

    def __init__(self, live: tuple[Live, ...]) -> None:
        self._live = live

    def describe(self) -> Iterator[Metric]:
        """Say what there will be, without looking anything up."""
        for live in self._live:
            yield GaugeMetricFamily(PREFIX + live.name, live.description, labels=live.labels)

    def collect(self) -> Iterator[Metric]:
        for live in self._live:
            family = GaugeMetricFamily(PREFIX + live.name, live.description, labels=live.labels)
            try:
                for values, value in live.read().items():
                    family.add_metric(values, value)
            except Exception:
                logger.exception("The metric %s could not be read", live.name)
                continue
            yield family
