"""The arms of an experiment as rows of a table: in the words and units of its own report, its interval beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tuneloop.registry.experiments import words
from tuneloop.registry.experiments.report import ArmUnits, Report

NOTHING = "–"


@dataclass(frozen=True)
class ArmRow:
    """One arm; what is not known yet, or hidden since the split is not what was declared, is a dash."""

    units: ArmUnits
    value: str = NOTHING  # of the primary metric
    difference: str = NOTHING  # to the control, with its interval
    verdict: str = NOTHING


def rows_of(report: Report) -> Iterator[ArmRow]:
    """The arms in their order."""
    metric = report.experiment.declaration.primary
    compared = {treatment.version: treatment for treatment in report.treatments}
    for arm in report.arms:
        found = compared.get(arm.version)
        if found is None:
            control = next((t.control for t in report.treatments if t.control is not None), None)
            yield ArmRow(arm, NOTHING if control is None or not arm.is_control else words.value(metric, control))
        elif found.difference is None or found.treatment is None:
            yield ArmRow(arm, verdict=found.verdict)
        else:
            change, low, high = (
                words.change(metric, amount)
                for amount in (found.difference.estimate, found.difference.low, found.difference.high)
            )
            yield ArmRow(arm, words.value(metric, found.treatment), f"{change} [{low}, {high}]", found.verdict)
