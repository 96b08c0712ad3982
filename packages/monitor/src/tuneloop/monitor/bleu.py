"""BLEU of texts against references, by sacrebleu, whose signature says how, so that figures can be compared.

Needed where a reference is there: what users say an answer should have been.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU


@cache
def _sentences() -> BLEU:
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415 (slow to import)

    return BLEU(effective_order=True)  # of a text of three words there are no four-grams


def sentence_bleus(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """BLEU of each text against its one reference, 0 to 100."""
    metric = _sentences()
    return [float(metric.sentence_score(text, [ref]).score) for text, ref in zip(texts, references, strict=True)]


def signature() -> str:
    """How these are computed, as sacrebleu says it."""
    sentence_bleus([""], [""])  # it tells the number of references once it has seen some
    return str(_sentences().get_signature())
