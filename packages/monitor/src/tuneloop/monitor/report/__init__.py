"""The report of a model: one HTML page that needs nothing but itself, and every figure on it as JSON."""

from __future__ import annotations

from tuneloop.monitor.report.page import write_report

__all__ = ["write_report"]
