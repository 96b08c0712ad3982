"""How each part of the traffic does: by version, engine, time of day, length of the question and the like. Pure.

Every figure has its interval of 95 %, each by itself: of twenty of them one lies beside the truth. What rests on fewer
than `LEAST` requests is left out, and is no zero.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tuneloop.monitor.fields import FIELDS
from tuneloop.monitor.quality import is_refusal, thumbs_of
from tuneloop.monitor.report.figures import Quantile, Slice
from tuneloop.monitor.report.over_time import ANSWERED
from tuneloop.registry.corrections import corrects
from tuneloop.registry.nouns import Feedback, Interval, RequestRecord
from tuneloop.registry.statistics.intervals import quantile_interval, wilson

LEAST = 10
MOST_VALUES = 12  # of a field, those with most requests
LEVEL = 0.95
_SERVER_FAULT = 500
_NUMBERS = re.compile(r"\d[\d,]*")


def slices_of(records: Sequence[RequestRecord], feedback: Mapping[str, Sequence[Feedback]]) -> Iterator[Slice]:
    """Each value of each field that has more than one, with how its requests did."""
    thumbs = thumbs_of(feedback)
    corrected = {request_id for request_id, items in feedback.items() if any(map(corrects, items))}
    for field, value_of in FIELDS.items():
        values = [value_of(record) for record in records]
        counted = Counter(value for value in values if value is not None)
        if len(counted) > 1:
            for value in sorted((name for name, _ in counted.most_common(MOST_VALUES)), key=_order):
                held = [record for record, own in zip(records, values, strict=True) if own == value]
                yield _slice(field, value, held, thumbs, corrected)


def _order(value: str) -> tuple[int, str]:
    """By the number it begins with, so that short prompts stand before long ones."""
    found = _NUMBERS.match(value)
    return (int(found[0].replace(",", "")) if found else 0), value


def _slice(
    field: str, value: str, records: Sequence[RequestRecord], thumbs: Mapping[str, bool], corrected: set[str]
) -> Slice:
    answered = [record for record in records if record.status == ANSWERED]
    rated = [thumbs[record.id] for record in answered if record.id in thumbs]
    with_text = [record.answer for record in answered if record.answer is not None]
    return Slice(
        field=field,
        value=value,
        requests=len(records),
        failed=_share(record.status >= _SERVER_FAULT for record in records),
        p95_ms=_p95([record.total_ms for record in answered]),
        thumbs_down=_share(rated),
        corrected=_share(record.id in corrected for record in answered),
        refused=_share(is_refusal(answer) for answer in with_text),
    )


def _share(hits: Iterator[bool] | Sequence[bool]) -> Interval | None:
    told = [*hits]
    return wilson(sum(told), len(told), LEVEL) if len(told) >= LEAST else None


def _p95(values: Sequence[float]) -> Quantile | None:
    if len(values) < LEAST:
        return None
    estimate, low, high = quantile_interval(values, 0.95, LEVEL)
    return Quantile(estimate=estimate, low=low, high=high)
