"""Group-relative policy optimisation through TRL's GRPOTrainer (Shao et al. 2402.03300); answers come from the model
in this process, not from an engine.

Questions are tokenised as they were labelled, without the tokenizer's own special tokens before them. The reference
is a frozen copy of the adapter as training began (for a fresh one: the base itself), which TRL makes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tuneloop.train.data.labels import LabelledPrompt
from tuneloop.train.evaluation.measure import end_ids
from tuneloop.train.fit.guard import Interruptible
from tuneloop.train.fit.reference import same_reference
from tuneloop.train.fit.sampling import asking_before_each_pass, its_own_probabilities
from tuneloop.train.recipe import RunSection
from tuneloop.train.recipe.objective import GrpoObjective
from tuneloop.train.rewards import Answer, Judge

_ROW = "row"  # the column that says which question a prompt is


class _PreparedGrpoTrainer(Interruptible, GRPOTrainer):  # type: ignore[misc]  # trl is untyped here
    """GRPOTrainer on questions that are tokenised already; prompts are their numbers in its eyes."""

    questions: Sequence[LabelledPrompt] = ()

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.questions[int(prompt)].ids) for prompt in prompts], None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        """All answers of a step, before its first pass: by far its longest part, which a stop must not wait for."""
        self.drawn = list(dict.fromkeys(one[_ROW] for one in inputs))
        with asking_before_each_pass(self.model, self.between_passes):
            return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *others: Any, **values: Any
    ) -> tuple[list[list[int]], None]:
        """A micro-batch at a time, where TRL answers all at once: so halving it halves what this takes too."""
        size, answers = self.args.per_device_train_batch_size, list[list[int]]()
        with its_own_probabilities(self.model):
            for start in range(0, len(prompt_ids), size):
                answers += super()._generate_single_turn(prompt_ids[start : start + size], *others, **values)[0]
        return answers, None


def grpo_trainer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[LabelledPrompt],
    objective: GrpoObjective,
    judge: Judge,
    run: RunSection,
    arguments: dict[str, Any],
    callbacks: list[TrainerCallback],
) -> GRPOTrainer:
    """A trainer over labelled questions; `arguments` are those every trainer shares."""
    config = GRPOConfig(
        **arguments,
        beta=objective.kl_coefficient,
        num_generations=objective.answers,
        max_completion_length=objective.max_new_tokens,
        temperature=objective.temperature,
        activation_checkpointing=run.gradient_checkpointing,
        disable_dropout=True,
    )
    data = Dataset.from_dict({"prompt": [str(n) for n in range(len(prompts))], _ROW: list(range(len(prompts)))})
    ends, batch = end_ids(model, tokenizer), config.per_device_train_batch_size

    def between_passes() -> None:
        trainer.between_passes()

    with same_reference(model):
        trainer = _PreparedGrpoTrainer(
            model=model,
            reward_funcs=[_as_trl(name, judge, prompts, ends, batch, between_passes) for name in judge.names],
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
    trainer.questions = prompts
    return trainer


def _as_trl(
    name: str,
    judge: Judge,
    prompts: Sequence[LabelledPrompt],
    ends: set[int],
    batch: int,
    check: Callable[[], None],
) -> Callable[..., list[float]]:
    """One part of the judge in the form TRL calls: its name is what TRL logs it under."""

    def reward(completions: list[str], completion_ids: list[list[int]], row: list[int], **others: Any) -> list[float]:  # noqa: ARG001 (TRL hands over all it has)
        answers = [
            Answer(
                prompts[number].row.messages,
                text.strip(),
                ids[-1] in ends,
                prompts[number].row.fields,
                prompts[number].ids,
                tuple(ids),
            )
            for text, ids, number in zip(completions, completion_ids, row, strict=True)
        ]
        return judge.part(name, answers, batch=batch, check=check)

    reward.__name__ = name
    return reward
