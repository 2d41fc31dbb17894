"""Numbers as Prometheus reads them: text format 0.0.4, or OpenMetrics 1.0 for who asks for it.

Source: prometheus.io/docs/instrumenting/exposition_formats; the OpenMetrics specification, version 1.0.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

TEXT = b"text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = b"application/openmetrics-text; version=1.0.0; charset=utf-8"

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One name. bounds: upper bounds of a histogram's buckets, without the last, infinite one.

    merge: how the figures of several workers become one.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    merge: Literal["sum", "max"] = "sum"

    @property
    def cells(self) -> int:
        """Cells of one series: a value, or the buckets (not cumulated), the infinite one and the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


def exposed(
    families: Iterable[Family],
    series: Mapping[str, Mapping[Labels, tuple[float, ...]]],
    *,
    open_metrics: bool = False,
) -> bytes:
    """The page. series: by family name, then by label values."""
    lines: list[str] = []
    for family in families:
        name = family.name
        if open_metrics and family.kind == "counter":
            name = name.removesuffix("_total")
        lines += (f"# HELP {name} {_escaped(family.help)}", f"# TYPE {name} {family.kind}")
        for labels, cells in sorted(series.get(family.name, {}).items()):
            lines += _series(family, labels, cells)
    if open_metrics:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode()


def _series(family: Family, labels: Labels, cells: tuple[float, ...]) -> Iterable[str]:
    pairs = [f'{name}="{_quoted(value)}"' for name, value in zip(family.labels, labels, strict=True)]
    if family.kind != "histogram":
        yield f"{family.name}{_braced(pairs)} {_number(cells[0])}"
        return
    *counts, total = cells
    cumulated = list(accumulate(counts))
    bounds = [*map(repr, map(float, family.bounds)), "+Inf"]
    for bound, count in zip(bounds, cumulated, strict=True):
        le = f'le="{bound}"'
        yield f"{family.name}_bucket{_braced([*pairs, le])} {_number(count)}"
    yield f"{family.name}_count{_braced(pairs)} {_number(cumulated[-1])}"
    yield f"{family.name}_sum{_braced(pairs)} {_number(total)}"


def _braced(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')
