"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.experiments import words
from tuneloop.registry.experiments.draw import pictures
from tuneloop.registry.experiments.report import Report
from tuneloop.registry.files import write_atomically


def write_page(report: Report, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        InvalidInput: the file cannot be written.
    """
    text = render(report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error.strerror}); give --html a file that can be") from None


def render(report: Report) -> str:
    """The page as text; nothing in it is loaded from anywhere else."""
    source = files("tuneloop.registry.experiments").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    drawn = {name: Markup(svg) for name, svg in pictures(report).items()}  # noqa: S704 (our own drawing)
    environment.filters["marked"] = _marked
    return environment.from_string(source).render(
        r=report, declared=report.experiment.declaration, pictures=drawn, words=words
    )


def _marked(text: str) -> Markup:
    """Text for a page: what stands in backticks is set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 (escaped right here)
