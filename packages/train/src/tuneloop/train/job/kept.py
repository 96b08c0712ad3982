"""A parent's scores, kept when it was made: a retraining that would measure the same again takes them instead.

The same means: the same rows, asked the same questions, on the same kind of device, in the same type, by the same
libraries and the same code of ours. Otherwise the parent is measured again. So it is where that code has changes of
which no commit tells, with metrics of the user's own, whose code may have changed too, with full fine-tuning, whose
master weights are not what a version holds, and on a quantised base.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version as package_version
from typing import Any

import torch
import transformers

from tuneloop.registry.errors import InvalidInput
from tuneloop.train.evaluation.measure import Answer, EvaluationSet, SetScore
from tuneloop.train.evaluation.statistics import RowScore
from tuneloop.train.publishing.folder import code_commit
from tuneloop.train.publishing.lineage import Lineage
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.tuning import FullTuning, QloraTuning
from tuneloop.train.tuning.models import Loader


def conditions(recipe: Recipe, loader: Loader) -> dict[str, str]:
    """What a score depends on beside the weights and the rows; empty where scores are not to be used again."""
    quantised = isinstance(loader.tuning, QloraTuning) and not loader.measures_apart
    code = code_commit()
    unknown = code.endswith("-dirty")  # two trees with changes may differ
    if recipe.evaluate.metrics or isinstance(loader.tuning, FullTuning) or quantised or unknown:
        return {}
    return {
        "device": torch.cuda.get_device_name() if loader.device == "cuda" else loader.device,
        "dtype": loader.dtype,
        "attention": loader.attention,
        "base": loader.base.digest,
        "template": loader.base.template_digest,
        "max_length": str(recipe.objective.max_length),
        "max_new_tokens": str(recipe.evaluate.max_new_tokens),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tuneloop": f"{package_version('tuneloop-train')} {code}",
    }


def kept_scores(parent: Lineage, sets: Mapping[str, EvaluationSet], now: Mapping[str, str]) -> dict[str, SetScore]:
    """The parent's scores on those of the sets that it was measured on under these conditions."""
    try:
        kept = parent.evaluation()
    except InvalidInput:  # an older version; it can be measured
        return {}
    if not now or kept.get("conditions") != dict(now):
        return {}
    return {
        name: _score(kept["sets"][name]) for name, chosen in sets.items() if _is_same(chosen, kept["sets"].get(name))
    }


def _is_same(chosen: EvaluationSet, kept: Mapping[str, Any] | None) -> bool:
    return kept is not None and (kept["digest"], kept["asked"]) == (chosen.digest, [row.prompt for row in chosen.asked])


def _score(kept: Mapping[str, Any]) -> SetScore:
    after = kept["after"]
    return SetScore(
        rows=tuple(RowScore(float(nll), int(tokens)) for nll, tokens in after["rows"]),
        bleu=after["bleu"],
        bleu_signature=kept["bleu_signature"],
        answers=tuple(Answer(text, ended) for text, ended in zip(after["answers"], after["ended"], strict=True)),
    )
