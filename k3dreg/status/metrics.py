"""Metrics in Prometheus' text format.  The only module that uses prometheus-client.

The values of every label but `node` are from a fixed list, and any other value counts as "other", so that clients
cannot create time series.  `node` is the name of a node that runs in the engine; few are counted at a time.  Units are
seconds and bytes.  Names end as Prometheus' conventions require.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from attrs import frozen
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from k3dreg.oci import errors
from k3dreg.reporting.activity import KINDS, Activity, ContentRequest, RequestReport
from k3dreg.reporting.observer import CANCELLED
from k3dreg.status.overview import WAYS, NodeCounts

# The text format 0.0.4, which every version of Prometheus accepts.
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"})
ROUTES = frozenset(
    {"base", "manifest", "blob", "tags", "referrers", "catalog", "upload", "page", "health", "metrics", "invalid"}
)
SOURCES = frozenset({"cache", "export", "content", "layers", "pushed", "registry", "pull under way"})

# Seconds.  `_FAST` is for requests, from a cached blob to the 30 s that a node waits for headers and a large image's
# pull; `_SLOW` is for pulls, exports and transfers.
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 300)
_SLOW = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


@frozen
class Readings:
    """The store's use at one time: bytes and numbers of blobs.  Evictions are counted since the start."""

    cache_bytes: int = 0
    cache_limit: int = 0
    cache_blobs: int = 0
    evicted_blobs: int = 0
    evicted_bytes: int = 0


def _error_names() -> frozenset[str]:
    names, waiting = set(), [errors.K3dregError]
    while waiting:
        cls = waiting.pop()
        names.add(cls.__name__)
        waiting += cls.__subclasses__()
    return frozenset(names)


class Metrics:
    """Counts what it is told as an observer; `text` returns the metrics.  Every instance has its own registry.

    The caller of `text` sets `engine_up` before; while it is None, the metric is left out.
    """

    def __init__(
        self,
        version: str,
        readings: Callable[[], Readings],
        nodes: Callable[[], Sequence[NodeCounts]] = lambda: (),
    ) -> None:
        """`readings` returns the use of the store, and `nodes` what each node got since the start."""
        # Otherwise each counter has a second time series with the time at which it was created.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        self._refusals_known = _error_names() | {CANCELLED, "Unexpected"}
        self._running: set[Activity] = set()
        self.engine_up: bool | None = None
        self._requests = Counter(
            "k3dreg_requests_total", "Requests that have ended", ["route", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "k3dreg_request_duration_seconds",
            "From the head of a request to the last byte of its answer",
            ["route"],
            buckets=_FAST,
            registry=registry,
        )
        self._head_seconds = Histogram(
            "k3dreg_response_header_seconds",
            "From the head of a request to the headers of its answer, for which a node waits 30 seconds",
            ["route"],
            buckets=_FAST,
            registry=registry,
        )
        self._answers = Counter(
            "k3dreg_content_answers_total",
            "Requests for content that were answered with it, by where it came from",
            ["source"],
            registry=registry,
        )
        self._sent = Counter(
            "k3dreg_sent_bytes_total", "Bytes of content sent, by where it came from", ["source"], registry=registry
        )
        self._refusals = Counter(
            "k3dreg_refusals_total", "Requests that ended with an error, by kind", ["kind"], registry=registry
        )
        self._aborted = Counter("k3dreg_aborted_answers_total", "Answers whose body broke off", registry=registry)
        self._work = Counter(
            "k3dreg_work_total",
            "Pulls by the engine, exports out of it, bodies sent, and linkings into nodes, that have ended",
            ["kind", "outcome"],
            registry=registry,
        )
        self._work_seconds = Histogram(
            "k3dreg_work_duration_seconds",
            "Seconds that pulls, exports, sent bodies and linkings took",
            ["kind"],
            buckets=_SLOW,
            registry=registry,
        )
        self._work_bytes = Counter(
            "k3dreg_work_bytes_total",
            "Bytes that pulls, exports and sent bodies moved, and linkings saved, as far as k3dreg knows",
            ["kind"],
            registry=registry,
        )
        for source in (*sorted(SOURCES), OTHER):
            self._sent.labels(source)
            self._answers.labels(source)
        for kind in KINDS:
            self._work.labels(kind, "ok")
            self._work.labels(kind, "failed")
            self._work_seconds.labels(kind)
            self._work_bytes.labels(kind)
        registry.register(_Read(version, readings, nodes, lambda: self.engine_up, self._under_way))
        ProcessCollector(registry=registry)

    def text(self) -> bytes:
        """Return all metrics in the format of `MEDIA_TYPE`."""
        return generate_latest(self._registry)

    def began(self, activity: Activity) -> None:
        """Count the work as under way."""
        self._running.add(activity)

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """Count the work as ended, by its kind and outcome."""
        self._running.discard(activity)
        kind = _one_of(activity.kind, KINDS)
        outcome = "ok" if not refusal else "cancelled" if refusal == CANCELLED else "failed"
        self._work.labels(kind, outcome).inc()
        self._work_seconds.labels(kind).observe(max(0.0, seconds))
        self._work_bytes.labels(kind).inc(max(0, activity.progress().done))

    def asked(self, request: ContentRequest) -> None:
        """Do nothing: requests are counted at their end."""

    def answered(self, report: RequestReport) -> None:
        """Count a request that has ended."""
        route = _one_of(report.route, ROUTES)
        status = str(report.status) if 100 <= report.status <= 599 else OTHER
        self._requests.labels(route, _one_of(report.method, METHODS), status).inc()
        self._seconds.labels(route).observe(max(0.0, report.seconds))
        self._head_seconds.labels(route).observe(max(0.0, report.head_seconds))
        if report.route in ("manifest", "blob") and report.method in ("GET", "HEAD"):
            source = _one_of(report.source, SOURCES)
            if report.status < 400 and not report.aborted:
                self._answers.labels(source).inc()
            if report.status < 400 or report.status == 499:
                self._sent.labels(source).inc(report.sent)
        if report.refusal:
            self._refusals.labels(_one_of(report.refusal, self._refusals_known)).inc()
        if report.aborted:
            self._aborted.inc()

    def _under_way(self) -> dict[str, tuple[int, int]]:
        """Return by kind how much work is under way, and how many requests wait for it."""
        found = dict.fromkeys(KINDS, (0, 0))
        for activity in self._running:
            if activity.kind in found:
                count, waiters = found[activity.kind]
                found[activity.kind] = (count + 1, waiters + activity.waiters())
        return found


def _one_of(value: str, known: Iterable[str]) -> str:
    return value if value in known else OTHER


class _Read(Collector):
    """A collector of the metrics that are read at each request for them instead of counted."""

    def __init__(
        self,
        version: str,
        readings: Callable[[], Readings],
        nodes: Callable[[], Sequence[NodeCounts]],
        engine_up: Callable[[], bool | None],
        under_way: Callable[[], dict[str, tuple[int, int]]],
    ) -> None:
        self._engine_up = engine_up
        self._version = version
        self._readings = readings
        self._nodes = nodes
        self._under_way = under_way

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their present values; prometheus-client calls it."""
        now = self._readings()
        info = GaugeMetricFamily("k3dreg_build_info", "The version of k3dreg; always 1", labels=["version"])
        info.add_metric([self._version], 1)
        yield info
        yield GaugeMetricFamily(
            "k3dreg_cache_bytes", "Bytes in the store, pushed content included", value=now.cache_bytes
        )
        yield GaugeMetricFamily(
            "k3dreg_cache_limit_bytes", "The limit of cached content in bytes (--cache-size)", value=now.cache_limit
        )
        yield GaugeMetricFamily(
            "k3dreg_cache_blobs", "Blobs in the store, pushed content included", value=now.cache_blobs
        )
        yield CounterMetricFamily("k3dreg_evicted_blobs", "Blobs evicted from the cache", value=now.evicted_blobs)
        yield CounterMetricFamily("k3dreg_evicted_bytes", "Bytes evicted from the cache", value=now.evicted_bytes)
        up = self._engine_up()
        if up is not None:
            yield GaugeMetricFamily("k3dreg_engine_up", "1 while the engine answers", value=int(up))
        active = GaugeMetricFamily(
            "k3dreg_work_in_progress", "Pulls, exports, sent bodies and linkings under way", labels=["kind"]
        )
        waiters = GaugeMetricFamily("k3dreg_work_waiters", "Requests that wait for work under way", labels=["kind"])
        for kind, (count, waiting) in self._under_way().items():
            active.add_metric([kind], count)
            waiters.add_metric([kind], waiting)
        yield active
        yield waiters
        yield from self._of_nodes()

    def _of_nodes(self) -> Iterator[Metric]:
        pulls = CounterMetricFamily(
            "k3dreg_pulls", "Pulls of images by a node, by how it came to the layers", labels=["node", "way"]
        )
        linked = CounterMetricFamily("k3dreg_linked_layers", "Layers linked into a node", labels=["node"])
        saved = CounterMetricFamily(
            "k3dreg_linked_bytes", "Bytes of the layers linked into a node, which were not sent", labels=["node"]
        )
        for node in self._nodes():
            for way in WAYS:
                pulls.add_metric([node.name, way], node.pulls.get(way, 0))
            linked.add_metric([node.name], node.linked)
            saved.add_metric([node.name], node.saved)
        yield pulls
        yield linked
        yield saved
