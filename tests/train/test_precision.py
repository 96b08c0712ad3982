"""A run computes in what its machine is fast in; emulated bfloat16 made a step five times slower, without a word."""

from __future__ import annotations

from tuneloop.train.tuning.precision import choose_dtype, faster, of_gpu


def test_bfloat16_is_taken_only_where_it_is_faster_and_the_reason_says_by_how_much() -> None:
    assert faster(float32_s=1.0, bfloat16_s=0.5).value == "bfloat16"
    slow = faster(float32_s=1.0, bfloat16_s=5.0)
    assert (slow.value, slow.reason) == (
        "float32",
        "matrix products here take 5.0 times as long in bfloat16 as in float32",
    )
    assert faster(float32_s=1.0, bfloat16_s=1.0).value == "float32"


def test_the_recipe_is_obeyed_and_a_gpu_that_has_bfloat16_computes_in_it() -> None:
    assert choose_dtype("bfloat16", "cpu").value == "bfloat16"
    assert (of_gpu(7).value, of_gpu(8).value) == ("float32", "bfloat16"), "a V100, an A100"
    assert choose_dtype("auto", "cpu").value in {"bfloat16", "float32"}
