"""Spans and histograms of requests as OTLP messages, named by the GenAI semantic conventions.

The conventions are in development and have changed names; `CONVENTIONS` holds the ones that can be chosen:
    1.36    the last in the main repository that existing dashboards read: gen_ai.system, gen_ai.server.*
    latest  of the repository of their own: gen_ai.provider.name, time to first chunk

Written without the SDK: requests are put in a queue as they are, and encoded in the sender's thread.
Source: opentelemetry.io/docs/specs/semconv/gen-ai; open-telemetry/semantic-conventions-genai; opentelemetry-proto.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from steelyard.errors import WrongUsage
from steelyard.records import FINISH_REASONS
from steelyard.serve.trace import Trace

try:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
    from opentelemetry.proto.metrics.v1.metrics_pb2 import (
        AggregationTemporality,
        Histogram,
        HistogramDataPoint,
        Metric,
        ResourceMetrics,
        ScopeMetrics,
    )
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
except ImportError as error:
    raise WrongUsage("telemetry needs an extra; run: pip install steelyard[telemetry]") from error

PROVIDER = "steelyard"
MAX_SERIES = 1000  # combinations of operation, model and status in one worker; further ones are not counted

# Bounds that the conventions advise.
SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = tuple(float(4**power) for power in range(14))


@dataclass(frozen=True, slots=True)
class Conventions:
    """The names that differ between versions."""

    provider: str
    duration: str
    first_chunk: str
    tokens: str = "gen_ai.client.token.usage"


CONVENTIONS = {
    "1.36": Conventions(
        "gen_ai.system", "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token"
    ),
    "latest": Conventions(
        "gen_ai.provider.name",
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_to_first_chunk",
    ),
}


@dataclass(slots=True)
class Finished:
    """One request, as telemetry tells of it: names, counts and times, never payload.

    operation: chat, text_completion or embeddings.  end_ns: since 1970.  digest, receipt: empty without an answer.
    """

    trace: Trace
    operation: str
    route: str
    alias: str
    status: int
    end_ns: int
    duration_s: float
    first_chunk_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    digest: str = ""
    receipt: str = ""


@dataclass(slots=True)
class _Points:
    counts: list[int]
    total: float = 0.0


@dataclass(slots=True)
class Encoder:
    """Makes the messages. resource: what this process is.  begun_ns: when counting began."""

    conventions: Conventions
    resource: Mapping[str, str]
    begun_ns: int
    _series: dict[tuple[str, tuple[tuple[str, str], ...]], _Points] = field(default_factory=dict)

    def spans(self, requests: Iterable[Finished]) -> bytes:
        """An ExportTraceServiceRequest of those that are sampled."""
        spans = [self._span(request) for request in requests if request.trace.is_sampled]
        scoped = ScopeSpans(scope=_SCOPE, spans=spans)
        message = ExportTraceServiceRequest(
            resource_spans=[ResourceSpans(resource=self._resource(), scope_spans=[scoped])]
        )
        return bytes(message.SerializeToString())

    def count(self, request: Finished) -> None:
        """Take a request into the histograms."""
        names = self.conventions
        common = [("gen_ai.operation.name", request.operation), (names.provider, PROVIDER),
                  ("gen_ai.request.model", request.alias)]  # fmt: skip
        failed = [("error.type", str(request.status))] if request.status >= 400 else []
        self._add(names.duration, SECONDS, (*common, *failed), request.duration_s)
        if request.first_chunk_s is not None:
            self._add(names.first_chunk, SECONDS, (*common,), request.first_chunk_s)
        for kind, tokens in (("input", request.prompt_tokens), ("output", request.completion_tokens)):
            if tokens is not None:
                self._add(names.tokens, TOKENS, (*common, ("gen_ai.token.type", kind)), tokens)

    def metrics(self, now_ns: int) -> bytes:
        """An ExportMetricsServiceRequest of all that was counted, cumulated."""
        by_name: dict[str, list[HistogramDataPoint]] = {}
        for (name, attributes), points in self._series.items():
            by_name.setdefault(name, []).append(
                HistogramDataPoint(
                    attributes=_attributes(dict(attributes)),
                    start_time_unix_nano=self.begun_ns,
                    time_unix_nano=now_ns,
                    count=sum(points.counts),
                    sum=points.total,
                    bucket_counts=points.counts,
                    explicit_bounds=TOKENS if name == self.conventions.tokens else SECONDS,
                )
            )
        cumulated = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        metrics = [
            Metric(
                name=name,
                unit="{token}" if name == self.conventions.tokens else "s",
                histogram=Histogram(data_points=points, aggregation_temporality=cumulated),
            )
            for name, points in by_name.items()
        ]
        scoped = ScopeMetrics(scope=_SCOPE, metrics=metrics)
        message = ExportMetricsServiceRequest(
            resource_metrics=[ResourceMetrics(resource=self._resource(), scope_metrics=[scoped])]
        )
        return bytes(message.SerializeToString())

    def _span(self, request: Finished) -> Span:
        trace = request.trace
        known = {
            "gen_ai.operation.name": request.operation,
            self.conventions.provider: PROVIDER,
            "gen_ai.request.model": request.alias,
            "http.route": request.route,
            "http.response.status_code": request.status,
            "gen_ai.usage.input_tokens": request.prompt_tokens,
            "gen_ai.usage.output_tokens": request.completion_tokens,
            "gen_ai.response.finish_reasons": _reasons(request.finish_reason),
            "gen_ai.response.model": request.digest or None,
            "gen_ai.response.id": request.receipt or None,
            "steelyard.model.digest": request.digest or None,
            "steelyard.receipt": request.receipt or None,
            "steelyard.first_chunk_s": request.first_chunk_s,
            "error.type": str(request.status) if request.status >= 400 else None,
        }
        failed = Status.STATUS_CODE_ERROR if request.status >= 500 else Status.STATUS_CODE_UNSET
        return Span(
            trace_id=trace.trace_id,
            span_id=trace.span_id,
            parent_span_id=trace.parent_id,
            flags=0x100 | 0x200 * bool(trace.parent_id) | trace.is_sampled,
            name=f"{request.operation} {request.alias}",
            kind=Span.SPAN_KIND_SERVER,
            start_time_unix_nano=request.end_ns - int(request.duration_s * 1e9),
            end_time_unix_nano=request.end_ns,
            attributes=_attributes(known),
            status=Status(code=failed),
        )

    def _add(
        self, name: str, bounds: Sequence[float], attributes: tuple[tuple[str, str], ...], value: float
    ) -> None:
        points = self._series.get((name, attributes))
        if points is None:
            if len(self._series) >= MAX_SERIES:
                return
            points = self._series[name, attributes] = _Points([0] * (len(bounds) + 1))
        points.counts[bisect_left(bounds, value)] += 1
        points.total += value

    def _resource(self) -> Resource:
        return Resource(attributes=_attributes(self.resource))


_SCOPE = InstrumentationScope(name=PROVIDER)


def _reasons(word: str | None) -> list[str] | None:
    # An upstream's word is its own: only those of the vendors' schemas are passed on.
    return None if word is None else [word if word in FINISH_REASONS else "other"]


def _attributes(values: Mapping[str, object]) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(value)) for name, value in values.items() if value is not None]


def _value(value: object) -> AnyValue:
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=[_value(one) for one in value]))
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(string_value=str(value))
