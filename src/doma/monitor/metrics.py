"""Numbers for Prometheus, cheap enough for the data path.

Requests are counted in plain integers and turned into metrics when somebody asks: about a microsecond a
request, where a labelled prometheus-client counter and histogram take ten. One registry for each app, so
that two in one process (tests) do not share numbers.

Source: Prometheus exposition format; §8 of the monitoring contract for names.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper bounds of the latency buckets in seconds: from a warm range to a whole file over a WAN."""

METHODS = frozenset(
    "GET HEAD PUT POST DELETE OPTIONS MKCOL MOVE COPY PROPFIND PROPPATCH".split()  # noqa: SIM905 - reads better
)

Numbers = float | Mapping[tuple[str, ...], float]
"""One value, or label values to value."""
Kind = Literal["counter", "gauge"]


class Metrics(Collector):
    """The metrics of one app.

    Args:
        process: Also tell CPU, memory and garbage collection of this process.
    """

    def __init__(self, *, process: bool = True) -> None:
        self._requests: dict[tuple[str, str, str, int], int] = {}
        self._flows: dict[tuple[str, str, str], _Flow] = {}
        self._others: dict[str, Sums] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)
        if process:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)

    def request(
        self,
        door: str,
        endpoint: str,
        method: str,
        status: int,
        seconds: float,
        received: int = 0,
        sent: int = 0,
        count: int = 1,
    ) -> None:
        """Count requests that have ended.

        Args:
            door: ``https``, ``flight`` …
            endpoint: Its name; empty: none. Never what a client made up: every new label costs memory.
            method: Unknown ones are counted together.
            status: HTTP status.
            seconds: From head to last byte, of all together.
            received: Bytes of the bodies received.
            sent: Bytes of the bodies sent.
            count: How many equal ones, for a caller that adds in batches.
        """
        if method not in METHODS:
            method = "other"
        key = (door, endpoint, method, status)
        self._requests[key] = self._requests.get(key, 0) + count
        flow = self._flows.get(key[:3])
        if flow is None:
            flow = self._flows[key[:3]] = _Flow()
        flow.received += received
        flow.sent += sent
        flow.seconds += seconds
        flow.buckets[bisect_left(BOUNDS, seconds / count)] += count

    def give(self) -> "Sums":
        """All that was counted so far, for the metrics of another process."""
        return {
            "requests": [[*key, count] for key, count in self._requests.items()],
            "flows": [[*key, f.received, f.sent, f.seconds, f.buckets] for key, f in self._flows.items()],
        }

    def take(self, name: str, sums: "Sums") -> None:
        """Tell another process's numbers beside ours; its newest sums replace those before."""
        self._others[name] = sums

    def keep(self, name: str) -> None:
        """That process has ended: its numbers become ours, so that no counter falls. Idempotent."""
        sums = self._others.pop(name, None)
        if sums is not None:
            _add(self._requests, self._flows, sums)

    def watch(
        self,
        name: str,
        text: str,
        value: Callable[[], Numbers],
        *,
        kind: Kind = "gauge",
        labels: Sequence[str] = (),
    ) -> None:
        """Ask for numbers that somebody else keeps, each time the metrics are read.

        Args:
            name: Metric name; a counter's ends in ``_total``.
            text: What it means, with its unit.
            value: Gives the number, or one for each combination of label values.
            kind: A counter never falls.
            labels: Names of the labels, in the order of the keys of ``value``.

        Raises:
            ValueError: the name is taken or no metric name.
        """
        self.registry.register(_Watched(name, text, value, kind, labels))

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client asks for."""
        counts = dict(self._requests)
        flows = {key: flow.copy() for key, flow in tuple(self._flows.items())}
        for sums in tuple(self._others.values()):
            _add(counts, flows, sums)
        labels = ["door", "endpoint", "method"]
        requests = CounterMetricFamily("doma_requests", "Requests answered.", labels=[*labels, "status"])
        for (*where, status), count in counts.items():
            requests.add_metric([*where, str(status)], count)
        received = CounterMetricFamily("doma_received_bytes", "Bytes of bodies received.", labels=labels)
        sent = CounterMetricFamily("doma_sent_bytes", "Bytes of bodies sent.", labels=labels)
        took = HistogramMetricFamily(
            "doma_request_seconds", "Seconds from the head of a request to the last byte.", labels=labels
        )
        for key, flow in flows.items():
            received.add_metric(key, flow.received)
            sent.add_metric(key, flow.sent)
            buckets = zip([*map(str, map(float, BOUNDS)), "+Inf"], accumulate(flow.buckets), strict=True)
            took.add_metric(key, [(bound, float(count)) for bound, count in buckets], flow.seconds)
        yield from (requests, received, sent, took)

    def describe(self) -> Iterator[Metric]:
        """The names alone, so that registering does not read numbers that are not there yet."""
        return self.collect()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text, and its content type: OpenMetrics where that is accepted."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _Flow:
    """Sums of one door, endpoint and method."""

    __slots__ = ("buckets", "received", "seconds", "sent")

    def __init__(self) -> None:
        self.received = self.sent = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(BOUNDS) + 1)

    def copy(self) -> "_Flow":
        """The same sums, apart."""
        return _Flow().add(self.received, self.sent, self.seconds, self.buckets)

    def add(self, received: int, sent: int, seconds: float, buckets: Sequence[int]) -> "_Flow":
        """Add another's sums."""
        self.received += received
        self.sent += sent
        self.seconds += seconds
        self.buckets = [a + b for a, b in zip(self.buckets, buckets, strict=True)]
        return self


Sums = Mapping[str, Sequence[Sequence[Any]]]
"""Rows of requests and flows, as JSON takes them."""


def _add(
    requests: dict[tuple[str, str, str, int], int], flows: dict[tuple[str, str, str], _Flow], sums: Sums
) -> None:
    for door, endpoint, method, status, count in sums["requests"]:
        key = door, endpoint, method, status
        requests[key] = requests.get(key, 0) + count
    for door, endpoint, method, received, sent, seconds, buckets in sums["flows"]:
        flow = flows.setdefault((door, endpoint, method), _Flow())
        flow.add(received, sent, seconds, buckets)


class _Watched(Collector):
    def __init__(
        self, name: str, text: str, value: Callable[[], Numbers], kind: Kind, labels: Sequence[str]
    ) -> None:
        self._name, self._text, self._value, self._kind = name, text, value, kind
        self._labels = list(labels)

    def _family(self) -> CounterMetricFamily | GaugeMetricFamily:
        family = CounterMetricFamily if self._kind == "counter" else GaugeMetricFamily
        return family(self._name, self._text, labels=self._labels)

    def describe(self) -> Iterator[Metric]:
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family, value = self._family(), self._value()
        numbers = value if isinstance(value, Mapping) else {(): value}
        for key, number in numbers.items():
            family.add_metric(key, number)
        yield family
