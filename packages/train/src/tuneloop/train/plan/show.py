"""A plan as a person reads it: what it needs, whether it fits, how long, how much, servable or not, what helps."""

from __future__ import annotations

from collections.abc import Sequence

from tuneloop.registry.printing import table
from tuneloop.train.data.label_audit import PromptAudit
from tuneloop.train.plan.advice import Advice
from tuneloop.train.plan.memory import GIB
from tuneloop.train.plan.plan import Plan
from tuneloop.train.plan.timing import Seconds

_SHOWN = 5


def shown(plan: Plan, servable: str | None, advice: Sequence[Advice], source: str) -> str:
    """Every part, one below the other."""
    parts = [_head(plan, source), _memory(plan), _time(plan)]
    if plan.costs:
        parts.append(_costs(plan))
    parts.append(f"servable: {'yes' if servable is None else f'no: {servable}'}")
    parts.append(f"{_audit(plan)}\n{_leakage(plan)}")
    if advice:
        parts.append(_advice(advice))
    parts.append("\n".join(f"note: {note}" for note in plan.notes))
    return "\n\n".join(parts)


def duration(hours: float) -> str:
    """Hours in the unit that reads best."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"


def _head(plan: Plan, source: str) -> str:
    share = plan.trained_parameters / plan.shape.parameters
    rows = plan.rows
    return table(
        ("plan", ""),
        [
            ("model", f"{plan.shape.name}, {plan.shape.parameters / 1e6:,.1f}M parameters ({source})"),
            ("trained", f"{plan.recipe.tuning.method}, {plan.trained_parameters / 1e6:,.2f}M parameters ({share:.2%})"),
            ("rows", f"{rows.rows:,} of {rows.mean:.0f} tokens, longest {rows.longest} ({rows.source})"),
            (
                "device",
                f"{plan.machine.name}, {plan.machine.device.memory_gib:.0f} GiB, computing in {plan.load.dtype}",
            ),
        ],
    )


def _memory(plan: Plan) -> str:
    memory, answering = plan.memory, plan.answering
    passed = f"{plan.load.rows} rows of {plan.load.length} tokens"
    kept = "no answers are written"
    if memory.cache:
        passed, kept = "of one pass", "of the answers so far"
    elif answering is not None:
        kept = f"{answering.cache / GIB:.2f} while {answering.moment}, {answering.total / GIB:.2f} in all"
    rows = [
        ("weights", memory.weights, "adapter included"),
        ("gradients", memory.gradients, "of earlier micro-batches" if memory.moment == "the loss" else ""),
        ("optimiser", memory.optimizer, plan.recipe.optim.optimizer),
        ("activations", memory.activations, passed),
        ("logits and loss", memory.loss, "of a token" if memory.cache else "in tiles"),
        ("keys and values", memory.cache, kept),
        ("overhead", memory.overhead, "libraries" if plan.machine.kind == "cpu" else "CUDA context"),
    ]
    answer = {
        "yes": "it fits",
        "perhaps": "it may not fit: the upper bound is above the device's memory",
        "no": "it does not fit",
    }[plan.fits]
    if plan.whole is not None and plan.whole > memory.total:
        answer = f"{plan.whole / GIB:.2f} GiB where weights are whole, see the notes: {answer}"
    largest = str(plan.largest_micro_batch or "none, not even one row")
    if plan.largest_micro_batch == plan.recipe.run.batch_size // plan.recipe.run.launch.processes:
        largest += ", all of a device's rows of a batch"
    listed = table(("memory", "GiB", ""), [(name, f"{size / GIB:.2f}", note) for name, size, note in rows])
    return (
        f"{listed}\n{memory.total / GIB:.2f} GiB [{memory.low / GIB:.2f}, {memory.high / GIB:.2f}] on each device "
        f"at its fullest, {memory.moment}: {answer}\nlargest micro-batch that fits: {largest}"
    )


def _time(plan: Plan) -> str:
    def between(value: Seconds) -> str:
        return f"{duration(value.estimate)} [{duration(value.low)}, {duration(value.high)}]"

    energy = plan.energy_kwh
    return table(
        ("time", ""),
        [
            ("step", f"{plan.step.estimate:.2f} s [{plan.step.low:.2f}, {plan.step.high:.2f}]"),
            ("steps", f"{plan.steps:,}"),
            ("all", between(plan.hours)),
            ("energy", f"{energy.estimate:.2f} kWh [{energy.low:.2f}, {energy.high:.2f}]"),
        ],
    )


def _costs(plan: Plan) -> str:
    rows = [
        (
            cost.offer.provider,
            f"{cost.instances} × {cost.offer.instance}",
            cost.offer.devices,
            "spot" if cost.spot else "on demand",
            f"${cost.usd} [{cost.low_usd}, {cost.high_usd}]",
            cost.offer.as_of,
        )
        for cost in plan.costs
    ]
    return table(("provider", "instance", "devices", "", "US dollars", "list price as of"), rows)


def _audit(plan: Plan) -> str:
    audit = plan.rows.audit
    if audit is None:
        return f"labels: not audited ({plan.rows.source}); `tuneloop train` audits every row before its first step"
    if isinstance(audit, PromptAudit):
        return (
            f"questions ({plan.rows.source}): the longest has {audit.longest} tokens, {audit.left_out} are left out as "
            f"longer than objective.max_prompt_length; answers end with {audit.end_of_turn}"
        )
    line = (
        f"labels ({plan.rows.source}): {audit.trained_share:.1%} of the tokens learned, {audit.end_of_turn} learned in "
        f"all but {audit.rows_without_end} rows, {audit.truncated_rows} rows cut"
    )
    return line if audit.warning is None else f"{line}\nwarning: {audit.warning}"


def _leakage(plan: Plan) -> str:
    found = plan.rows.leakage
    if found is None:
        return "leakage: not looked for, there is no file to compare; `tuneloop train` does before it begins"
    of = f"{found.compared} of {found.rows} rows compared" if found.compared < found.rows else f"{found.rows} rows"
    told = f"leakage ({of}): {found.exact} are also measured, {found.near} nearly so"
    if found.examples:
        told += f"; for example {found.examples[0]}"
    if found.left_out:
        told += f"; not compared: {', '.join(found.left_out)}"
    return "\n".join([told, *(f"`tuneloop train` will refuse it: {reason}" for reason in found.refused)])


def _advice(advice: Sequence[Advice]) -> str:
    rows = [
        (
            one.change,
            f"{one.memory_gib:+.2f} GiB",
            f"{one.time_share:+.0%}",
            f"{'-' if one.usd.startswith('-') else '+'}${one.usd.lstrip('-')}" if one.usd else None,
            one.fits,
            one.price,
        )
        for one in advice[:_SHOWN]
    ]
    return table(("what would make it cheaper", "memory", "time", "money", "fits", "what it costs otherwise"), rows)
