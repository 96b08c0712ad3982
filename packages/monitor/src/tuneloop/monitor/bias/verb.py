"""`tuneloop bias check`: the verb."""

from __future__ import annotations

from pathlib import Path

import click

from tuneloop.registry.errors import Refused
from tuneloop.registry.nouns import parse_version_name
from tuneloop.registry.printing import emit, json_option, table


@click.group()
def bias() -> None:
    """Whether a version expects stereotypes of gender, race and age, more than the champion does."""


@bias.command()
@click.argument("name", metavar="VERSION|NAME")
@click.option("--engine", "url", metavar="URL", help="Read NAME on this vLLM instead; nothing is kept.")
@click.option("--templates", type=click.Path(path_type=Path), help="Sentences of your own (JSON).")
@click.option(
    "--set", "sets", multiple=True, metavar="SET:FILE", help="Also a set you have: winobias, winogender or bbq."
)
@click.option("--margin", type=click.FloatRange(0, min_open=True), help="Nats per token that may be lost.")
@json_option
def check(
    name: str, *, url: str | None, templates: Path | None, sets: tuple[str, ...], margin: float | None, as_json: bool
) -> None:
    """Read counterfactual sentences on an engine and judge them, by attribute.

    A VERSION is held against the champion where that was checked, and the result is kept with it: a gate policy with
    `bias: no more than the champion` and the report read it there. With --engine, NAME is what that engine serves. The
    sets named by `bias_sets` in [monitor] are read where no --set is given. Ends with 3 when more bias is shown than
    the champion's.
    """
    from tuneloop.monitor.bias.check import HEADERS, check_version, lines, read_scores, read_templates, result, rows
    from tuneloop.monitor.bias.judge import MARGIN
    from tuneloop.monitor.bias.sets import read_sets
    from tuneloop.monitor.bias.templates import own_templates
    from tuneloop.monitor.reading import engine_client
    from tuneloop.monitor.settings import MonitorSettings
    from tuneloop.registry import Registry
    from tuneloop.registry.nouns import utc_now

    settings = MonitorSettings.load()
    read, lost = read_templates(templates) if templates else own_templates(), margin or MARGIN
    read = read.with_more(read_sets(sets or settings.bias_sets))
    concurrency = settings.scorer_concurrency
    with engine_client(settings.scorer_timeout_s) as client:
        if url is not None:
            scores = read_scores(client, url, name, read, concurrency=concurrency)
            found = result(name, utc_now(), read, scores, None, why_alone="it was read with --engine", margin=lost)
        else:
            model, number = parse_version_name(name)
            with Registry.open() as registry:
                version = registry.versions.get(model, number)
                found = check_version(registry, client, version, read, margin=lost, concurrency=concurrency)
    emit(found, as_json, "\n".join([table(HEADERS, list(rows(found))), "", *lines(found)]))
    worse = [b.attribute for b in found.attributes if b.champion is not None and b.champion.verdict == "more"]
    if worse:
        raise Refused(f"{name} shows more bias than {found.champion} by {' and '.join(worse)}")
