"""`tuneloop experiment new · list · show · start · stop · step · report`."""

from __future__ import annotations

from pathlib import Path

import click

from tuneloop.registry.experiments.declaration import Experiment, ExperimentPlan, read_declaration
from tuneloop.registry.facade import Registry
from tuneloop.registry.printing import by_option, emit, json_option, reason_option, table, tell_unreadable
from tuneloop.registry.routes.promotion import Change


@click.group()
def experiment() -> None:
    """Compare versions on live traffic."""


@experiment.command("new")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--replace", "replaced", help="The draft whose place it takes.")
@by_option
@reason_option
@json_option
def experiment_new(file: Path, replaced: str | None, by: str, reason: str, as_json: bool) -> None:
    """Declare an experiment, and say how long it will take."""
    from tuneloop.registry.experiments import conduct

    declared = read_declaration(file)
    with Registry.open() as registry:
        declared = conduct.settled(registry, declared)
        plan = conduct.plan(registry, declared)
        if replaced is None:
            made = registry.experiments.new(declared, plan, by=by, reason=reason)
        else:
            made = registry.experiments.redeclare(replaced, declared, plan, by=by, reason=reason)
        next_line = f"next: `tuneloop experiment start {made.id} --by YOU --reason WHY`"
        emit(made, as_json, f"{made.id} is declared, of {made.model}\n{_planned(made)}\n{next_line}")


@experiment.command("list")
@click.option("--model", help="Only this model's.")
@json_option
def experiment_list(model: str | None, as_json: bool) -> None:
    """List experiments, the newest first."""
    with Registry.open() as registry:
        found = registry.experiments.all(model)
        tell_unreadable(found.unreadable)
        if model is not None and not found and not found.unreadable:
            registry.check_model(model)
        rows = [
            [
                one.id,
                one.model,
                one.state,
                " ".join(f"{version}={bp}" for version, bp in one.declaration.arms.items()),
                None if one.started_at is None else f"{one.started_at:%Y-%m-%d %H:%M:%S}",
                one.declaration.hypothesis,
            ]
            for one in found
        ]
        emit(found, as_json, table(["ID", "MODEL", "STATE", "SPLIT (BP)", "STARTED (UTC)", "HYPOTHESIS"], rows))


@experiment.command("show")
@click.argument("experiment_id")
@json_option
def experiment_show(experiment_id: str, as_json: bool) -> None:
    """Show what was declared, and what happened to it."""
    with Registry.open() as registry:
        found = registry.experiments.get(experiment_id)
        entries = registry.audit.entries(experiment_id)
        tell_unreadable(entries.unreadable)
        history = entries[::-1]
        rows = [[f"{e.at:%Y-%m-%d %H:%M:%S}", e.action, e.actor, e.detail.get("reason")] for e in history]
        text = "\n\n".join(
            [
                f"{found.id}: {found.model}, {found.state}\n" + table(["KEY", "DECLARED"], _declared(found)),
                _planned(found),
                table(["AT (UTC)", "WHAT", "BY", "REASON"], rows),
            ]
        )
        emit({"experiment": found, "history": history}, as_json, text)


@experiment.command("start")
@click.argument("experiment_id")
@by_option
@reason_option
@click.option("--force", is_flag=True, help="Serve what nobody approved; on record.")
@json_option
def experiment_start(experiment_id: str, by: str, reason: str, force: bool, as_json: bool) -> None:
    """Give the arms their shares and start; the declaration stands from then on."""
    from tuneloop.registry.experiments import conduct

    with Registry.open() as registry:
        started, route = conduct.start(registry, experiment_id, Change(by, reason, force))
        every_s = started.declaration.step_every_s
        moved = "" if every_s is None else f"a controller moves the shares every {every_s:g} s\n"
        emit(
            started,
            as_json,
            f"{started.id} runs under revision {route.revision} of {route.model}: {route.split_text}\n{moved}"
            f"next: `tuneloop experiment report {started.id}`, as often as you like",
        )


@experiment.command("stop")
@click.argument("experiment_id")
@by_option
@reason_option
@json_option
def experiment_stop(experiment_id: str, by: str, reason: str, as_json: bool) -> None:
    """Count nothing from now on; the route stays as it is."""
    with Registry.open() as registry:
        stopped = registry.experiments.stop(experiment_id, by=by, reason=reason)
        route = registry.routes.current(stopped.model)
        emit(
            stopped,
            as_json,
            f"{stopped.id} is stopped; {route.model} still has {route.split_text} (revision {route.revision})\n"
            f"next: `tuneloop promote {route.model}@VERSION`, or `tuneloop rollback {route.model}`",
        )


@experiment.command("step")
@click.argument("experiment_id")
@click.option("--propose", is_flag=True, help="Say what the shares would be, and change nothing.")
@by_option
@reason_option
@json_option
def experiment_step(experiment_id: str, propose: bool, by: str, reason: str, as_json: bool) -> None:
    """Move a bandit's shares once."""
    from tuneloop.registry.experiments import conduct

    with Registry.open() as registry:
        running, route, wanted = conduct.step(registry, experiment_id)
        rows = [
            [version, f"{wanted.chances[version]:.1%}" if wanted.chances else None, route.split.get(version, 0), share]
            for version, share in wanted.split.items()
        ]
        text = table(["VERSION", "CHANCE TO BE BEST", "SHARE (BP)", "NEXT SHARE (BP)"], rows)
        moved = wanted.moves(route)
        if not propose:
            route = conduct.take(registry, running, route, wanted, Change(by, reason))
        if moved and not propose:
            text += f"\n{route.model} revision {route.revision}: {route.split_text}"
        elif not moved:
            text += "\nthe shares stay as they are" + ("" if wanted.chances else ": an arm has too few units yet")
        emit({"chances": wanted.chances, "split": wanted.split, "revision": route.revision}, as_json, text)


@experiment.command("report")
@click.argument("experiment_id")
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with the curve.")
@json_option
def experiment_report(experiment_id: str, page: Path | None, as_json: bool) -> None:
    """Say what it says, in words; as often as you like."""
    from tuneloop.registry.experiments import conduct, words

    with Registry.open() as registry:
        found = conduct.report(registry, experiment_id)
        rows = [
            [
                arm.version,
                "control" if arm.is_control else "treatment",
                arm.units,
                f"{arm.expected_units:.0f}",
                arm.requests,
            ]
            for arm in found.arms
        ]
        text = "\n".join(
            [
                *words.verdict(found),
                "",
                table(["VERSION", "ARM", "UNITS", "EXPECTED", "REQUESTS"], rows),
                *words.left_out(found),
            ]
        )
        if page is not None:
            from tuneloop.registry.experiments.page import write_page

            write_page(found, page)
            text += f"\n{page}"
        emit(found, as_json, text)


def _declared(found: Experiment) -> list[list[str]]:
    from tuneloop.registry.experiments.words import metric_name, promise

    declared = found.declaration
    metrics = {"primary", "guardrails", "arms"}
    rows = [[key, str(value)] for key, value in declared.model_dump(mode="json", exclude=metrics).items()]
    rows.insert(3, ["arms", " ".join(f"{version}={bp}" for version, bp in declared.arms.items())])
    rows += [[name, f"{metric_name(metric)}: {promise(metric)}"] for name, metric in declared.metrics]
    return [*rows, ["digest", declared.digest]]


def _planned(made: Experiment) -> str:
    from tuneloop.registry.experiments.words import change, metric_name, value

    plan, declared, primary = made.plan, made.declaration, made.declaration.primary
    if plan.units is None or plan.baseline is None or plan.fixed_units is None:
        return f"how long it takes cannot be told: {plan.units_seen} units had {metric_name(primary)} in recent traffic"
    looked = "looked at whenever you like" if declared.max_units is None else f"looked at {declared.looks} times"
    effect = change(primary, primary.minimum_effect)[1:]
    rows = [
        [f"{metric_name(primary)} now", f"{value(primary, plan.baseline)} ({plan.units_seen} units in {_span(plan)})"],
        ["least difference to find", effect],
        ["units for one look at the end", f"{plan.fixed_units:,} for {declared.power:.0%} power"],
        [f"units, {looked}", f"{plan.units:,} for {plan.power:.0%} power"],
        ["time for them to come", "never at this pace" if plan.days is None else f"about {plan.days:.1f} days"],
    ]
    return table(["PLAN", "FROM RECENT TRAFFIC"], rows)


def _span(plan: ExperimentPlan) -> str:
    return f"{plan.days_seen:.1f} days" if plan.days_seen >= 1 else f"{plan.days_seen * 24:.1f} hours"
