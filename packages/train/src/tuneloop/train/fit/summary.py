"""What a finished fit looks like: over-fitting and plateaus, said with what helps. Pure: curves in, sentences out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tuneloop.train.fit.checkpoints import RunState
from tuneloop.train.recipe import RunSection

_MEASURABLE_NATS = 0.02  # a difference between two validation losses worth a sentence
_PLATEAU_STEPS = 30  # fewer steps show noise, not a plateau
_PLATEAU_FALL = 0.01  # the last third falls less than this share of the middle third
_LEARNED = 0.2  # below this share of its first loss a run has learned what there is, and may be flat


def diagnose(losses: Sequence[float], state: RunState, run: RunSection) -> tuple[str, ...]:
    """Sentences for the reader of a run's summary; none when nothing stands out."""
    notes = []
    if state.rollbacks:
        notes.append(
            f"the run was rolled back {state.rollbacks} times and ended with learning rate {state.learning_rate:.3g}: "
            "put that rate, or a longer warm-up, into the recipe"
        )
    found = state.validations
    overfits = False
    if len(found) >= 2:
        best, last = min(found, key=lambda point: point.loss), found[-1]
        overfits = last.loss - best.loss > _MEASURABLE_NATS
        if overfits:
            stopping = "" if run.early_stopping else ", or set run.early_stopping, which keeps the best weights"
            notes.append(
                f"over-fitting: the validation loss was lowest after step {best.step} ({best.loss:.3f}) and rose to "
                f"{last.loss:.3f}: stop there{stopping}; dropout 0.1, weight decay 0.01 and more varied rows help too"
            )
    if not overfits and is_flat(losses):
        notes.append(
            "plateau: the loss hardly fell over the last third of the steps: a higher rank, a higher or differently "
            "scheduled learning rate, or cleaner rows may help; a low loss from the start may mean that the rows leak"
        )
    return tuple(notes)


def is_flat(losses: Sequence[float]) -> bool:
    """Whether the last third of a long enough run fell less than a hundredth below the middle third."""
    if len(losses) < _PLATEAU_STEPS or losses[0] <= 0:
        return False
    third = len(losses) // 3
    middle, last = statistics.mean(losses[third:-third]), statistics.mean(losses[-third:])
    return last > (1 - _PLATEAU_FALL) * middle and last > _LEARNED * losses[0]
