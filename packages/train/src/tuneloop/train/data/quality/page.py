"""A page that stands alone: pictures inline, every text of a row escaped, nothing loaded from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tuneloop.registry.files import write_atomically
from tuneloop.train.data.quality.draw import pictures
from tuneloop.train.data.quality.report import QualityReport


def write_page(report: QualityReport, path: Path) -> None:
    """Write the page, whole or not at all."""
    write_atomically(path, render(report).encode())


def render(report: QualityReport) -> str:
    """The page as text."""
    source = files("tuneloop.train.data.quality").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    drawn = {name: Markup(svg) for name, svg in pictures(report).items()}  # noqa: S704 (our own drawing, not a row's text)
    return environment.from_string(source).render(r=report, pictures=drawn)
