"""Whether a retraining may go on from its parent's weights: only where both are trained in the same way.

Anything else would train with the parent's rank, targets or method while the recipe says another, in silence.
"""

from __future__ import annotations

from tuneloop.train.recipe.tuning import LowRankTuning, TuningSection

# They change how it is trained, not what the weights mean.
_FREE = {"dropout", "bits", "double_quantization", "compute_dtype", "int8_threshold", "evaluate_unquantized"}


def cannot_go_on(parent: TuningSection, tuning: TuningSection) -> str | None:
    """Why training with `tuning` cannot start from a version that was trained with `parent`; None when it can."""
    was, now = _meaning(parent), _meaning(tuning)
    if was == now:
        return None
    differing = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    shown = ", ".join(f"{key} {was.get(key)} there and {now.get(key)} here" for key in differing)
    return f"tuning differs ({shown}); set retrain.start_from to base, or the tuning to the parent's"


def _meaning(tuning: TuningSection) -> dict[str, object]:
    found = {key: value for key, value in tuning.model_dump().items() if key not in _FREE}
    return found | ({"method": "lora"} if isinstance(tuning, LowRankTuning) else {})
