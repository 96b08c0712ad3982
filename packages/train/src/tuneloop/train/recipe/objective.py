"""`objective`: what is learned, and by which loss. Each kind has its own keys; one that it does not read is an error.

Sources: reward models (Bradley-Terry loss, Ouyang et al. 2203.02155), PPO (1707.06347) with KL control, DPO
(2305.18290), GRPO (2402.03300).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from tuneloop.train.recipe.part import Names, Part

Template = Literal["chat", "instruction"]


class _Objective(Part):
    """What all of them share."""

    template: Template = "chat"  # the base's own, or `### Instruction: … ### Response: …`, which no engine asks with

    def drawn(self, rows: int) -> int:
        """How much an epoch over so many rows draws, in what `run.batch_size` counts."""
        return rows

    def head_seed(self, seed: int) -> int | None:  # noqa: ARG002 (what a reward model makes of it)
        """The seed of a fresh head in place of the base's own; none: the base speaks."""
        return None


class _Lengths(_Objective):
    max_length: int = Field(default=1024, ge=16)  # tokens of a row; longer ones are cut at the end, and counted


class SftObjective(_Lengths):
    """Supervised fine-tuning on the assistant's turns; instruction, chat and prompt/completion rows are told apart."""

    kind: Literal["sft"] = "sft"


class RewardObjective(_Lengths):
    """A reward model: the base with one output, trained to put the chosen answer above the rejected one."""

    kind: Literal["reward"]

    def head_seed(self, seed: int) -> int | None:
        """Its head of one output is drawn by the run's seed."""
        return seed


class DpoObjective(_Lengths):
    """Direct preference optimisation on chosen and rejected answers, against what it was before."""

    kind: Literal["dpo"]
    beta: float = Field(default=0.1, gt=0.0)  # how strongly it is held to the reference


class _Sampling(_Objective):
    """Learning from the policy's own answers, scored by `rewards` or a reward model."""

    rewards: Names = ()  # names of reward functions, by entry point `tuneloop.rewards`; summed
    reward_model: str | None = None  # `model@version` made with objective reward, its folder, or an earlier stage
    max_prompt_length: int = Field(default=512, ge=8)  # tokens; longer questions are left out, and counted
    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, gt=0.0)
    kl_coefficient: float = Field(default=0.05, ge=0.0)  # how strongly it is held to the reference

    @property
    def max_length(self) -> int:
        """Tokens of a question and its answer; rows of held-out sets are cut there."""
        return self.max_prompt_length + self.max_new_tokens

    @model_validator(mode="after")
    def _is_rewarded(self) -> Self:
        if not self.rewards and self.reward_model is None:
            raise ValueError("give rewards (names of reward functions), reward_model, or both")
        return self


class GrpoObjective(_Sampling):
    """Group-relative policy optimisation: several answers to a question, each against their mean."""

    kind: Literal["grpo"]
    answers: int = Field(default=8, ge=2)  # per question; run.batch_size counts answers

    def drawn(self, rows: int) -> int:
        """Several answers to each question."""
        return rows * self.answers


class PpoObjective(_Sampling):
    """Proximal policy optimisation with a value head, generalised advantages and a clipped ratio."""

    kind: Literal["ppo"]
    clip: float = Field(default=0.2, gt=0.0, lt=1.0)  # how far the ratio of new to old probability counts
    value_clip: float = Field(default=0.2, gt=0.0)  # how far a value may move in one batch's updates
    value_coefficient: float = Field(default=0.1, ge=0.0)
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)  # discount a token
    gae_lambda: float = Field(default=0.95, ge=0.0, le=1.0)
    target_kl: float | None = Field(
        default=6.0, gt=0.0
    )  # nats an answer that kl_coefficient is steered to; none: fixed
    passes: int = Field(default=4, ge=1)  # over each batch of answers
    minibatches: int = Field(default=1, ge=1)  # updates a pass


def _kind(value: Any) -> str:
    found = value.get("kind", "sft") if isinstance(value, dict) else value.kind
    return found if isinstance(found, str) else "sft"


ObjectiveSection = Annotated[
    Annotated[SftObjective, Tag("sft")]
    | Annotated[RewardObjective, Tag("reward")]
    | Annotated[DpoObjective, Tag("dpo")]
    | Annotated[GrpoObjective, Tag("grpo")]
    | Annotated[PpoObjective, Tag("ppo")],
    Discriminator(_kind),
]


def unservable(objective: ObjectiveSection) -> str | None:
    """Why an engine would refuse what this objective makes; None when it would not."""
    if isinstance(objective, RewardObjective):
        return "a reward model scores answers and speaks none; name it in an objective of kind ppo or grpo"
    if objective.template == "chat":
        return None
    return (
        "an engine asks with the base's chat template, and this is trained with objective.template instruction; serve "
        "a merged export, into which the published chat_template.jinja goes, or train with template: chat"
    )
