"""A dashboard as values, and as the JSON that Grafana reads: rows of panels, laid out from left to right.

Every query goes to the data source the reader chooses; every panel has a unit. Field names are Grafana's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

COLUMNS = 24  # of Grafana's grid
SCHEMA_VERSION = 39
GREEN, ORANGE, RED = "green", "orange", "red"
MODEL = 'model=~"$model"'  # the models that the reader has chosen
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Kind = Literal["stat", "timeseries", "heatmap"]


@dataclass(frozen=True)
class Query:
    """One PromQL expression and how its series are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A picture of queries; `steps` colour a stat, and are lines across a time series."""

    title: str
    unit: str  # an id of Grafana's units
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    description: str = ""
    steps: tuple[tuple[float, str], ...] = ()  # from which value on → colour
    base: str = GREEN  # below the first of them
    stacked: bool = False

    def as_json(self, number: int, box: dict[str, int]) -> dict[str, Any]:
        """The panel at its place."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": _SOURCE,
            "gridPos": box,
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": _OPTIONS[self.kind] | ({"yAxis": {"unit": self.unit}} if self.kind == "heatmap" else {}),
            "targets": [self._target(place, query) for place, query in enumerate(self.queries)],
        }

    def _defaults(self) -> dict[str, Any]:
        found: dict[str, Any] = {"unit": self.unit}
        if self.steps:
            steps = [{"color": self.base, "value": None}, *({"color": c, "value": v} for v, c in self.steps)]
            found["thresholds"] = {"mode": "absolute", "steps": steps}
        if self.kind == "timeseries":
            found["min"] = 0 if self.unit != "none" else None
            found["custom"] = {
                "lineWidth": 1,
                "fillOpacity": 30 if self.stacked else 0,
                "showPoints": "never",
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "line" if self.steps else "off"},
            }
        return {name: value for name, value in found.items() if value is not None}

    def _target(self, place: int, query: Query) -> dict[str, Any]:
        found = {
            "refId": chr(ord("A") + place),
            "datasource": _SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
        }
        return found | ({"format": "heatmap"} if self.kind == "heatmap" else {})


@dataclass(frozen=True)
class Row:
    """Panels that belong together, all of a width."""

    title: str
    panels: tuple[Panel, ...]
    across: int = 3  # how many stand side by side
    height: int = 8


@dataclass(frozen=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    since: str = "now-6h"

    def as_json(self) -> dict[str, Any]:
        """As Grafana reads it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["tuneloop"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "refresh": "30s",
            "timezone": "utc",
            "time": {"from": self.since, "to": "now"},
            "graphTooltip": 1,
            "links": [_LINKS],
            "templating": {"list": [_DATA_SOURCE, _MODELS]},
            "annotations": {"list": [*_ANNOTATIONS]},
            "panels": [*self._laid_out()],
        }

    def _laid_out(self) -> Iterator[dict[str, Any]]:
        number, y = 0, 0
        for row in self.rows:
            number += 1
            line = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
            yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": line, "panels": []}
            y += 1
            width = COLUMNS // row.across
            for place, panel in enumerate(row.panels):
                number += 1
                at = {"x": place % row.across * width, "y": y + place // row.across * row.height}
                yield panel.as_json(number, {"h": row.height, "w": width} | at)
            y += -(-len(row.panels) // row.across) * row.height


def rate(metric: str, *matchers: str, chosen: str = MODEL) -> str:
    """How much a counter grows in a second, of the models that are chosen."""
    braces = ", ".join(part for part in (chosen, *matchers) if part)
    return f"rate({metric}{'{' + braces + '}' if braces else ''}[$__rate_interval])"


def quantiles(histogram: str, by: str, legend: str, *of: float, chosen: str = MODEL) -> tuple[Query, ...]:
    """Quantiles of a histogram, a query each."""
    labels = ", ".join(("le", *([by] if by else [])))
    return tuple(
        Query(
            f"histogram_quantile({q:g}, sum by ({labels}) ({rate(f'{histogram}_bucket', chosen=chosen)}))",
            f"{legend} p{100 * q:g}".strip(),
        )
        for q in of
    )


_OPTIONS: dict[Kind, dict[str, Any]] = {
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "graphMode": "none"},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Viridis",
            "steps": 64,
            "exponent": 0.5,
            "reverse": False,
            "fill": "blue",
        },
        "filterValues": {"le": 1e-9},  # a cell without an answer is empty
        "legend": {"show": True},
        "rowsFrame": {"layout": "le"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
    },
}
_LINKS = {
    "title": "tuneloop",
    "type": "dashboards",
    "tags": ["tuneloop"],
    "asDropdown": False,
    "icon": "",
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "tooltip": "",
    "url": "",
}
_DATA_SOURCE = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
_MODELS = {
    "name": "model",
    "type": "query",
    "label": "Model",
    "datasource": _SOURCE,
    "query": {"query": "label_values(tuneloop_route_revision, model)", "refId": "model"},
    "refresh": 2,
    "includeAll": True,
    "allValue": ".*",
    "multi": True,
    "current": {"text": "All", "value": "$__all"},
}
_ANNOTATIONS = (
    {
        "name": "Route changes",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": "changes(tuneloop_route_revision[1m]) > 0",
        "titleFormat": "{{model}} changes its route",
    },
    {
        "name": "Alerts",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertstate="firing"}',
        "titleFormat": "{{alertname}}",
    },
)
