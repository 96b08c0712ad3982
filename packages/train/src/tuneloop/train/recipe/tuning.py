"""`tuning`: what is trained of the base. Each method has its own keys; one that it does not read is an error.

The methods, with their papers: LoRA (arXiv 2106.09685), rank-stabilised LoRA (2312.03732), DoRA (2402.09353), QLoRA
(2305.14314), 8-bit weights (LLM.int8(), 2208.07339), bottleneck adapters (Houlsby et al. 1902.00751), IA3 (2205.05638).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from tuneloop.train.recipe.part import Names, Part

ALL_LINEAR = ("all-linear",)
Method = Literal["lora", "qlora", "bottleneck", "ia3", "full"]


class _LowRank(Part):
    """What LoRA and QLoRA share: a low-rank update beside each target layer, scaled by alpha / rank."""

    rank: int = Field(default=16, ge=1, le=512)
    alpha: int = Field(default=32, ge=1)  # fixed, so that the best learning rate hardly depends on the rank
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: Annotated[Names, Field(min_length=1)] = ALL_LINEAR
    rslora: bool = False  # scale by alpha / sqrt(rank): for ranks above 64
    dora: bool = False  # learn direction and magnitude apart; slower, and vLLM does not serve it

    @property
    def adapts_all_linear(self) -> bool:
        """Whether every linear layer but the output head gets an adapter."""
        return self.target_modules == ALL_LINEAR


class LoraTuning(_LowRank):
    """A low-rank adapter on an unquantised base."""

    method: Literal["lora"] = "lora"


class QloraTuning(_LowRank):
    """A low-rank adapter on a base whose weights are quantised while training."""

    method: Literal["qlora"]
    bits: Literal[4, 8] = 4  # 4: NF4, a quarter of the weights' memory; 8: LLM.int8(), a half
    double_quantization: bool = True  # quantise the quantisation constants too: 0.4 bits less per weight
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # of the products; auto: as run.dtype
    int8_threshold: float = Field(default=6.0, gt=0.0)  # outlier features above it stay unquantised (8 bits only)
    evaluate_unquantized: bool = True  # measure on the unquantised base, as it is served; false where that does not fit

    @model_validator(mode="after")
    def _reads_what_was_given(self) -> Self:
        unread = {4: {"int8_threshold"}, 8: {"double_quantization", "compute_dtype"}}[self.bits] & self.model_fields_set
        if unread:
            raise ValueError(f"{', '.join(sorted(unread))} is not read with bits: {self.bits}; remove it")
        return self


class BottleneckTuning(Part):
    """A small network after each attention and each MLP block: down, non-linearity, up, added to the stream."""

    method: Literal["bottleneck"]
    size: int = Field(default=64, ge=1)  # width of the bottleneck
    activation: Literal["relu", "gelu", "silu"] = "gelu"
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class Ia3Tuning(Part):
    """A learned scale on keys, values and the MLP's hidden layer: some ten thousand parameters."""

    method: Literal["ia3"]


class FullTuning(Part):
    """Every weight of the base."""

    method: Literal["full"]


def _method(value: Any) -> str:
    found = value.get("method", "lora") if isinstance(value, dict) else value.method
    return found if isinstance(found, str) else "lora"


TuningSection = Annotated[
    Annotated[LoraTuning, Tag("lora")]
    | Annotated[QloraTuning, Tag("qlora")]
    | Annotated[BottleneckTuning, Tag("bottleneck")]
    | Annotated[Ia3Tuning, Tag("ia3")]
    | Annotated[FullTuning, Tag("full")],
    Discriminator(_method),
]
LowRankTuning = LoraTuning | QloraTuning
