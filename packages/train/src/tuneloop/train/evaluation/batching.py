"""How held-out rows are put into batches. Pure, without torch: the plan asks, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

ANSWERS_AT_ONCE = (
    32  # a token of 24 answers costs about what one of 12 does, as long as reading the weights is what takes the time
)
BATCH_TOKENS = 16_384  # a batch of long rows holds fewer of them, so that memory is bounded


def batches(lengths: Sequence[int], most: int, tokens: int) -> Iterator[list[int]]:
    """Indexes in batches of like length, the short ones first: at most `most` rows, and `tokens` with padding."""
    chosen: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if chosen and (len(chosen) == most or (len(chosen) + 1) * lengths[index] > tokens):
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen
