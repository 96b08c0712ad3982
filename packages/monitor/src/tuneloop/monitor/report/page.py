"""Writing the page: figures, pictures and one template, each file whole or not at all."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tuneloop.monitor.report.arms import rows_of
from tuneloop.monitor.report.draw import alt_texts, pictures
from tuneloop.monitor.report.figures import Figures
from tuneloop.monitor.report.gather import gather
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.evidence import aftermath_lines, slice_lines
from tuneloop.registry.experiments import words
from tuneloop.registry.files import write_atomically
from tuneloop.registry.verbs.retraining import hours_text


def write_report(registry: Registry, model: str, folder: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` into a folder; returns both paths.

    Raises:
        NotFound: the model has no route yet.
        InvalidInput: the folder cannot be written to.
    """
    figures = gather(registry, model)
    page, values = folder / "report.html", folder / "report.json"
    drawn = render(figures)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(values, figures.model_dump_json(indent=2).encode())
        write_atomically(page, drawn.encode())
    except OSError as error:
        raise InvalidInput(
            f"{folder} cannot be written to ({error.strerror}); give --out a folder that can be, with room in it"
        ) from None
    return page, values


def render(figures: Figures) -> str:
    """The page as text; nothing in it is loaded from anywhere else."""
    source = files("tuneloop.monitor.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["arms"] = rows_of
    environment.filters["hours"] = hours_text
    environment.filters["aftermath"] = aftermath_lines
    environment.filters["slices"] = slice_lines
    drawn = {name: Markup(svg) for name, svg in pictures(figures).items()}  # noqa: S704 (our own drawing, not a user's text)
    return environment.from_string(source).render(f=figures, pictures=drawn, alt=alt_texts(figures), words=words)
