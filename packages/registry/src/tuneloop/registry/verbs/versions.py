"""`tuneloop models · versions · compare · gate · approve · sign`."""

from __future__ import annotations

from pathlib import Path

import click

from tuneloop.registry import actions, overview
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.facade import Registry
from tuneloop.registry.gates.declared import judge_again
from tuneloop.registry.nouns import Version, parse_version_name, version_name
from tuneloop.registry.policies import GatePolicy
from tuneloop.registry.printing import (
    by_option,
    emit,
    json_option,
    newest_option,
    reason_option,
    table,
    tell_more,
    tell_unreadable,
)
from tuneloop.registry.verbs.lineage import environment_text
from tuneloop.registry.verbs.policy import policy_options, set_policy, show_policy
from tuneloop.registry.versions.lineage import ComparedVersion, MeasuredMetric, run_kept

_COMPARED = (
    "kind",
    "base",
    "base_digest",
    "template_digest",
    "tokenizer_digest",
    "data_digest",
    "data_rows",
    "recipe_digest",
    "code_commit",
    "rank",
    "parent",
    "request_id",
    "trained_by",
    "signed_by",
)


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the registered models and who serves them."""
    with Registry.open() as registry:
        found = overview.models(registry)
        rows = [[line.model, line.newest_version, line.split_bp, line.revision] for line in found]
        emit(found, as_json, table(["MODEL", "NEWEST", "SPLIT (BP)", "REVISION"], rows))


@click.command()
@click.argument("model")
@newest_option
@json_option
def versions(model: str, newest: int, as_json: bool) -> None:
    """List a model's versions with their lineage and metrics, the newest first."""
    with Registry.open() as registry:
        found = registry.versions.all(model, newest=newest + 1)
        tell_more(found, newest)
        if not found:
            registry.versions.get(model, 1)  # raises with the names that exist
        if as_json:
            emit(found, as_json, "")
            return
        rows = [
            [
                v.name,
                f"{v.created_at:%Y-%m-%d %H:%M}",
                v.kind,
                v.parent,
                "unknown" if v.known_rows is None else v.known_rows,
                v.signed_by,
                registry.gates.approver(model, v.version),
                _figures(v),
            ]
            for v in found
        ]
        headers = ["VERSION", "MADE (UTC)", "KIND", "PARENT", "ROWS", "SIGNED BY", "APPROVED BY", "METRICS"]
        emit(found, as_json, table(headers, rows))


@click.command()
@click.argument("before")
@click.argument("after")
@json_option
def compare(before: str, after: str, as_json: bool) -> None:
    """Hold two versions side by side: what they were made of, figures with their intervals, and bias."""
    with Registry.open() as registry:
        sides = [run_kept(registry, *parse_version_name(name)) for name in (before, after)]
    pair = [side.version for side in sides]
    rows: list[list[object]] = [[name, *(_short(_known(v, name)) for v in pair)] for name in _COMPARED]
    rows.append(["files", *(f"{v.artifact_bytes / 1e6:.2f} MB" for v in pair)])
    rows.append(["environment", *(environment_text(side.environment) for side in sides)])
    measures = [{measure.name: measure for measure in side.measures} for side in sides]
    rows += [[name, *(_measure(of.get(name)) for of in measures)] for name in sorted({*measures[0], *measures[1]})]
    bias = [{one.attribute: one for one in side.bias.attributes} for side in sides]
    rows += [
        [f"bias, {name}", *(of[name].text.removeprefix(f"{name}: ") if name in of else None for of in bias)]
        for name in sorted({*bias[0], *bias[1]})
    ]
    emit([ComparedVersion.of(side) for side in sides], as_json, table(["", pair[0].name, pair[1].name], rows))
    tell_unreadable([f"{side.version.name}: {why}" for side in sides for why in side.not_known])


def _known(version: Version, name: str) -> object:
    return "unknown" if name == "data_rows" and version.known_rows is None else getattr(version, name)


def _measure(found: MeasuredMetric | None) -> str | None:
    if found is None or found.low is None or found.high is None:
        return f"{found.value:.4g}" if found else None
    return f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]"


@click.command()
@click.argument("name", metavar="VERSION|MODEL")
@policy_options
@click.option("--judge", is_flag=True, help="Judge a VERSION anew by what its model's gate declares.")
@json_option
def gate(name: str, path: Path | None, by: str | None, reason: str | None, judge: bool, as_json: bool) -> None:
    """Show how a version was judged, or what a model's gate asks for.

    With --set the gate of a MODEL asks for what the file says from now on. With --judge a VERSION is judged again, by
    what is asked for now and against the present champion: its metrics, latency, data, bias and signature, and what its
    training has shown, as far as that is kept. Both need --by and --reason.
    """
    if "@" in name:
        if path is not None:
            raise click.UsageError("--set is for a model's gate: give the name of a model, without @")
        _show_judgement(name, judge, by, reason, as_json)
        return
    if judge:
        raise click.UsageError("--judge is for a version: write MODEL@NUMBER")
    with Registry.open() as registry:
        registry.check_model(name)
        if path is not None:
            set_policy(registry, name, GatePolicy, path, by, reason)
        show_policy(registry, name, GatePolicy, as_json)


def _show_judgement(version: str, judge: bool, by: str | None, reason: str | None, as_json: bool) -> None:
    model, number = parse_version_name(version)
    if judge and (by is None or not (reason or "").strip()):
        raise InvalidInput("judging a version again needs --by and --reason: it is kept for ever")
    with Registry.open() as registry:
        if judge:
            judge_again(registry, overview.version(registry, model, number), by=by or "", reason=reason)
        judged, decisions = overview.judged(registry, model, number), registry.gates.decisions(model, number)
        report, approver = judged.report, judged.approver
        tell_unreadable(decisions.unreadable)
        if report is None:
            text = (
                f"{version} has not been judged; a retraining judges what it makes, a first version needs a person's "
                "approval"
            )
        else:
            rows = [[check.name, check.verdict, check.detail] for check in report.checks]
            against = f" against {model}@{report.champion}" if report.champion is not None else ""
            text = f"{version}{against}: {report.verdict}\n" + table(["CHECK", "VERDICT", "DETAIL"], rows)
        if decisions:
            text += "\n\n" + table(
                ["PERSON", "DECIDED", "AT (UTC)", "UNTIL (UTC)", "REASON"],
                [
                    [
                        d.by,
                        "approved" if d.granted else "revoked",
                        f"{d.at:%Y-%m-%d %H:%M}",
                        f"{d.expires_at:%Y-%m-%d %H:%M}" if d.expires_at else None,
                        d.reason,
                    ]
                    for d in decisions
                ],
            )
        decided = f"yes, approved by {approver}" if approver else f"no, {judged.why_not}"
        text += f"\n\nmay get a share: {decided}"
        shown = report.model_dump(mode="json") if report else {"model": model, "version": number, "checks": []}
        shown |= {"verdict": judged.verdict, "decisions": decisions, "approver": approver}
        emit(shown, as_json, text)


@click.command()
@click.argument("version")
@by_option
@reason_option
@click.option("--days", type=float, help="The approval expires after so many days.")
@click.option("--revoke", is_flag=True, help="Take back instead that it may serve, its gate's word too.")
def approve(version: str, by: str, reason: str, days: float | None, revoke: bool) -> None:
    """Answer for a version, so that it may serve, or revoke that."""
    if revoke and days is not None:
        raise click.UsageError("--days is how long an approval holds; it does not go with --revoke")
    model, number = parse_version_name(version)
    with Registry.open() as registry:
        if revoke:
            _revoke(registry, model, number, by, reason)
            return
        made = actions.approve(registry, model, number, by=by, reason=reason, days=days)
        until = f" until {made.expires_at:%Y-%m-%d %H:%M} UTC" if made.expires_at else ""
        click.echo(f"{version} is approved by {by}{until}")


def _revoke(registry: Registry, model: str, number: int, by: str, reason: str) -> None:
    revoked = actions.revoke(registry, model, number, by=by, reason=reason)
    if revoked.not_looked_up is not None:
        click.echo(f"not looked up: {revoked.not_looked_up}", err=True)
    click.echo(f"{version_name(model, number)} gets no new share until somebody approves it")
    for note in revoked.notes:
        click.echo(note)


@click.command()
@click.argument("version")
@by_option
@reason_option
def sign(version: str, by: str, reason: str) -> None:
    """Sign a version's files by this machine's settings, so that engines load them."""
    model, number = parse_version_name(version)
    with Registry.open() as registry:
        signed = actions.sign(registry, model, number, by=by, reason=reason)
    click.echo(f"{version} is signed by key {signed.signed_by}; an engine that refused it asks again within 20 s")


def _figures(version: Version) -> str:
    return " ".join(
        f"{name}={value:.4g}"
        for name, value in sorted(version.metrics.items())
        if name.split(".")[0] in {"perplexity", "bleu"}
    )


def _short(value: object) -> object:
    return f"{value[:19]}…" if isinstance(value, str) and value.startswith("sha256:") else value
