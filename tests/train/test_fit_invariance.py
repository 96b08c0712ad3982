"""What must not change what is learned: how a batch is split, packing, gradient checkpointing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from train.fitting import Fits
from tuneloop.registry.errors import InvalidInput
from tuneloop.train.base import Base
from tuneloop.train.fit.sft import require_separation


@pytest.fixture
def fits(tiny: Base, tiny_recipe: Path, tmp_path: Path) -> Fits:
    return Fits(tiny, tiny_recipe, tmp_path)


def test_batch_8_is_4_by_2_is_1_by_8_with_a_partial_last_window(fits: Fits) -> None:
    """13 rows: each second step sees 5 rows, a window that splits unevenly whatever the micro-batch."""
    rows = fits.labelled()[:13]
    assert len({row.trained for row in rows}) > 1
    losses, norms = {}, {}
    for micro_batch in (8, 4, 1):
        fits.fit(fits.recipe(batch_size=8, micro_batch=micro_batch), steps=5, rows=rows)
        losses[micro_batch], norms[micro_batch] = list(fits.losses.values()), list(fits.norms.values())
    assert len(losses[8]) == 5
    for smaller in (4, 1):
        assert losses[smaller] == pytest.approx(losses[8], abs=2e-5)
        assert norms[smaller] == pytest.approx(norms[8], rel=1e-4), "a loss may be told right and learned wrong"


def test_packed_rows_learn_as_unpacked_rows_do(fits: Fits) -> None:
    rows = fits.labelled()[:16]
    rows = [*rows[:8], *(type(r)(r.ids[4:], r.labels[4:], False, r.ends, r.prompt_length - 4) for r in rows[8:])]
    assert len({len(row.ids) for row in rows}) > 1
    fits.fit(fits.recipe(batch_size=8, micro_batch=4), rows=rows, steps=4)
    plain = fits.losses
    seen: list[int] = []
    fits.fit(
        fits.recipe(batch_size=8, micro_batch=4, packing=True), rows=rows, steps=4, hook=lambda n, _: seen.append(n)
    )
    assert set(seen) == {1}, "a packed micro-batch is one sequence"
    assert fits.losses == pytest.approx(plain, abs=2e-5)


def test_packed_rows_do_not_see_each_other(fits: Fits) -> None:
    """The logits of a row are the same wherever it lies in the pack; without positions they are not."""
    model = fits.model(fits.recipe()).eval()
    first, second = (torch.tensor(row.ids) for row in fits.labelled()[:2])
    ids = torch.cat([first, second])[None]
    positions = torch.cat([torch.arange(len(first)), torch.arange(len(second))])[None]
    with torch.no_grad():
        alone = model(input_ids=second[None]).logits
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, len(first) :]
        mixed = model(input_ids=ids, use_cache=False).logits[:, len(first) :]
    assert torch.allclose(packed, alone, atol=1e-4)
    assert not torch.allclose(mixed, alone, atol=1e-2)


def test_packing_is_refused_where_rows_would_mix(fits: Fits) -> None:
    config = fits.model(fits.recipe()).config
    require_separation(config)
    config._attn_implementation = "flex_attention"
    with pytest.raises(InvalidInput, match="see each other"):
        require_separation(config)
    config._attn_implementation = "sdpa"
    config.layer_types = ["full_attention", "conv"]
    with pytest.raises(InvalidInput, match="conv"):
        require_separation(config)


def test_gradient_checkpointing_changes_no_loss(fits: Fits) -> None:
    fits.fit(fits.recipe(), steps=4)
    plain = fits.losses
    fits.fit(fits.recipe(gradient_checkpointing=True), steps=4)
    assert fits.losses == pytest.approx(plain, abs=1e-6)
