"""An engine computes in what its machine is fast in; emulated bfloat16 would make it several times slower."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.serve.engine.precision import choose_precision, cpu_features


@pytest.mark.parametrize(
    ("features", "dtype"),
    [({"avx2", "avx512_bf16"}, "bfloat16"), ({"asimd", "bf16"}, "bfloat16"), ({"avx2"}, "float32"), (set(), "float32")],
)
def test_a_cpu_gets_bfloat16_only_with_instructions_for_it(features: set[str], dtype: str) -> None:
    assert choose_precision("auto", "cpu", frozenset(features)).dtype == dtype


def test_a_gpu_keeps_the_bases_own_format_and_a_setting_is_kept_everywhere() -> None:
    assert choose_precision("auto", "gpu", frozenset()).dtype == "auto"
    assert choose_precision("bfloat16", "cpu", frozenset({"avx2"})).dtype == "bfloat16"


def test_features_are_read_as_x86_and_arm_kernels_list_them(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nbugs\t\t: none\n")
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert cpu_features(x86) == {"fpu", "avx2", "avx512_bf16"}
    assert cpu_features(arm) == {"fp", "asimd", "bf16"}
    assert cpu_features(tmp_path / "none") == frozenset()
