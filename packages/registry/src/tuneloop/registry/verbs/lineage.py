"""`tuneloop show · card`: one version from every side."""

from __future__ import annotations

import click

from tuneloop.registry.facade import Registry
from tuneloop.registry.nouns import parse_version_name, version_name
from tuneloop.registry.printing import emit, json_option, table, tell_unreadable
from tuneloop.registry.versions.kept import KeptEnvironment
from tuneloop.registry.versions.lineage import Lineage, card_of, lineage_of

_SHOWN_PACKAGES = ("torch", "transformers", "peft", "trl")


@click.command()
@click.argument("version")
@json_option
def show(version: str, as_json: bool) -> None:
    """Show what a version was made of, by whom, what it reached, who let it in and where it serves."""
    model, number = parse_version_name(version)
    with Registry.open() as registry:
        found = lineage_of(registry, model, number)
        emit(found, as_json, _text(found))
        tell_unreadable(found.not_known)


@click.command()
@click.argument("version")
@json_option
def card(version: str, as_json: bool) -> None:
    """Print the model card that was published with a version, and what was found of bias since."""
    model, number = parse_version_name(version)
    with Registry.open() as registry:
        found = card_of(registry, model, number)
        emit(found, as_json, found.text.rstrip("\n"))
        tell_unreadable(found.not_known)


def _text(found: Lineage) -> str:
    parts = [table([found.version.name, ""], _made_of(found))]
    if found.measures:
        rows = [
            [m.name, f"{m.value:.4g}", None if m.low is None or m.high is None else f"[{m.low:.4g}, {m.high:.4g}]"]
            for m in found.measures
        ]
        parts.append(table(["MEASURE", "VALUE", "95% INTERVAL"], rows))
    if (bias := found.bias).at is not None:
        lines = "\n".join(f"  {one.text}" for one in bias.attributes)
        parts.append(f"bias, {bias.against}\n{lines}")
    if found.gate is not None:
        checks = [[check.name, check.verdict, check.detail] for check in found.gate.checks]
        champion = "nothing" if found.gate.champion is None else version_name(found.gate.model, found.gate.champion)
        parts.append(
            f"gate: {found.gate.verdict}, against {champion}\n" + table(["CHECK", "VERDICT", "DETAIL"], checks)
        )
    if found.decisions:
        rows = [
            [d.by, "approved" if d.granted else "revoked", f"{d.at:%Y-%m-%d %H:%M}", d.reason] for d in found.decisions
        ]
        parts.append(table(["PERSON", "DECIDED", "AT (UTC)", "REASON"], rows))
    parts.append(f"may get a share: {_may(found)}\nserves: {_serves(found)}")
    return "\n\n".join(parts)


def _made_of(found: Lineage) -> list[list[object]]:
    version = found.version
    return [
        ["kind", f"{version.kind}, rank {version.rank}" if version.rank is not None else version.kind],
        ["made (UTC)", f"{version.created_at:%Y-%m-%d %H:%M:%S}"],
        ["trained by", version.trained_by],
        ["base", f"{version.base} {version.base_digest}"],
        ["chat template", version.template_digest],
        ["tokenizer", version.tokenizer_digest],
        [
            "data",
            version.data_digest if version.known_rows is None else f"{version.known_rows} rows {version.data_digest}",
        ],
        *_data_rows(found),
        ["recipe", version.recipe_digest],
        ["code", version.code_commit],
        ["environment", environment_text(found.environment)],
        ["parent", version_name(version.model, version.parent) if version.parent else None],
        ["retraining", _retraining(found)],
        ["run", version.run_id],
        ["files", f"{version.artifact_bytes / 1e6:.2f} MB {version.artifact_digest}"],
        ["signed by", version.signed_by],
    ]


def _data_rows(found: Lineage) -> list[list[object]]:
    data = found.data
    dropped = ", ".join(f"{count} {reason}" for reason, count in data.dropped.items()) or None
    noted = (("fresh", data.fresh_rows), ("replayed", data.replayed_rows), ("dropped", dropped))
    rows: list[list[object]] = [[f"  held out: {name}", f"{s.rows} rows {s.digest}"] for name, s in data.sets.items()]
    rows += ([f"  {name}", value] for name, value in noted if value is not None)
    return rows


def environment_text(environment: KeptEnvironment) -> str | None:
    """For people: what is most asked for of it."""
    packages = environment.packages
    if not packages:
        return None
    shown = [f"{name} {packages[name]}" for name in _SHOWN_PACKAGES if name in packages]
    return ", ".join([f"Python {environment.python}", *shown, f"{len(packages)} packages in all"])


def _may(found: Lineage) -> str:
    if found.approver:
        return f"yes, approved by {found.approver}"
    return f"no, {found.why_not}" if found.why_not else "not known"


def _retraining(found: Lineage) -> str | None:
    request = found.request
    if request is None:
        return found.version.request_id
    approved = f", approved by {found.request_approved_by}" if found.request_approved_by else ""
    return f"{request.id}, {request.state}{approved}: {request.reason}"


def _serves(found: Lineage) -> str:
    serving = found.serving
    if serving is None:
        return "not known" if found.routed is None else "nowhere; no route names it"
    what = "the champion" if serving.champion else "a challenger" if serving.share_bp else "loaded without a share"
    keys = f", keys that were given it: {serving.overrides}" if serving.overrides else ""
    engines = ", ".join(f"{name} {state}" for name, state in serving.engines.items()) or "no live engine has it"
    gateways = ", ".join(serving.gateways) or "no live gateway"
    return (
        f"{serving.share_bp / 100:g} % by revision {serving.revision}, {what}{keys}; engines: {engines}; "
        f"gateways that apply it: {gateways}"
    )
