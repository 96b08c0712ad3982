"""`tuneloop models · versions · compare · gate · approve`."""

from __future__ import annotations

import click

from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import Version, parse_version_name
from tuneloop.registry.printing import by_option, emit, json_option, reason_option, table


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the registered models and who serves them."""
    with Registry.open() as registry:
        routes = registry.routes.current_all()
        rows = []
        for name in registry.versions.models():
            newest = registry.versions.all(name)[:1]
            route = routes.get(name)
            rows.append(
                [
                    name,
                    newest[0].version if newest else None,
                    route.split_text if route else None,
                    route.revision if route else None,
                ]
            )
        found = [dict(zip(("model", "newest_version", "split_bp", "revision"), row, strict=True)) for row in rows]
        emit(found, as_json, table(["MODEL", "NEWEST", "SPLIT (BP)", "REVISION"], rows))


@click.command()
@click.argument("model")
@json_option
def versions(model: str, as_json: bool) -> None:
    """List a model's versions with their lineage and metrics."""
    with Registry.open() as registry:
        found = registry.versions.all(model)
        if not found:
            registry.versions.get(model, 1)  # raises with the names that exist
        rows = [
            [
                v.name,
                f"{v.created_at:%Y-%m-%d %H:%M}",
                v.kind,
                v.parent,
                v.data_rows,
                registry.gates.approver(model, v.version),
                _figures(v),
            ]
            for v in found
        ]
        emit(found, as_json, table(["VERSION", "MADE (UTC)", "KIND", "PARENT", "ROWS", "APPROVED BY", "METRICS"], rows))


@click.command()
@click.argument("before")
@click.argument("after")
@json_option
def compare(before: str, after: str, as_json: bool) -> None:
    """Hold two versions side by side: lineage and metrics."""
    with Registry.open() as registry:
        pair = [registry.versions.get(*parse_version_name(name)) for name in (before, after)]
        fields = [
            "base",
            "base_digest",
            "template_digest",
            "data_digest",
            "data_rows",
            "recipe_digest",
            "code_commit",
            "rank",
            "parent",
            "request_id",
        ]
        rows: list[list[object]] = [[name, *(_short(getattr(v, name)) for v in pair)] for name in fields]
        rows += [
            [metric, *(f"{v.metrics[metric]:.4g}" if metric in v.metrics else None for v in pair)]
            for metric in sorted(set(pair[0].metrics) | set(pair[1].metrics))
        ]
        emit(pair, as_json, table(["", pair[0].name, pair[1].name], rows))


@click.command()
@click.argument("version")
@json_option
def gate(version: str, as_json: bool) -> None:
    """Show how a version was judged against the champion."""
    model, number = parse_version_name(version)
    with Registry.open() as registry:
        registry.versions.get(model, number)
        report = registry.gates.latest(model, number)
        if report is None:
            emit(
                None,
                as_json,
                f"{version} has not been judged; a retraining judges what it makes, "
                "a first version needs a person's approval",
            )
            return
        rows = [[check.name, check.verdict, check.detail] for check in report.checks]
        text = f"{version} against {model}@{report.champion}: {report.verdict}\n" + table(
            ["CHECK", "VERDICT", "DETAIL"], rows
        )
        emit(report.model_dump(mode="json") | {"verdict": report.verdict}, as_json, text)


@click.command()
@click.argument("version")
@by_option
@reason_option
def approve(version: str, by: str, reason: str) -> None:
    """Answer for a version, so that it may serve."""
    model, number = parse_version_name(version)
    with Registry.open() as registry:
        registry.versions.get(model, number)
        registry.gates.approve(model, number, by=by, reason=reason)
    click.echo(f"{version} is approved by {by}")


def _figures(version: Version) -> str:
    return " ".join(
        f"{name}={value:.4g}"
        for name, value in sorted(version.metrics.items())
        if name.split(".")[0] in {"perplexity", "bleu"}
    )


def _short(value: object) -> object:
    return f"{value[:19]}…" if isinstance(value, str) and value.startswith("sha256:") else value
