"""The loop: sample a batch of answers, judge them, and take several clipped steps on what they taught.

`run.steps` counts batches of `run.batch_size` answers; each is learned from in `objective.passes` passes of
`objective.minibatches` updates, `run.micro_batch` answers a forward pass. One process; the same seed on the same CPU
gives the same run. A stop leaves the step after the pass it is in, back to the state before it. Full memory halves the
answers of a pass and changes nothing else; what would spoil the weights stops the run, or takes it back to its last
checkpoint with a lower rate.
"""

# ruff: noqa: N803, N806 (suffixes are shapes)

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import get_scheduler

from tuneloop.registry.errors import TuneloopError
from tuneloop.train.data.labels import LabelledPrompt
from tuneloop.train.fit.arguments import schedule_arguments
from tuneloop.train.fit.checkpoints import CheckpointStore, RunState
from tuneloop.train.fit.divergence import Diverged, lowered, name_rows
from tuneloop.train.fit.guard import RandomState, set_peak_rate
from tuneloop.train.fit.memory import give_memory_back, is_out_of_memory, reason_of, smaller
from tuneloop.train.fit.ppo.keeping import Keeper, Learned
from tuneloop.train.fit.ppo.losses import KlControl
from tuneloop.train.fit.ppo.rollout import Actor, Rollout, roll_out
from tuneloop.train.fit.ppo.updating import HalfUpdated, Update, Updater, Wild
from tuneloop.train.fit.progress import FitResult, Watch, peak_memory_bytes
from tuneloop.train.fit.reference import hold_reference, release_reference
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.objective import PpoObjective
from tuneloop.train.rewards import Judge
from tuneloop.train.stopping import Stopped

T = TypeVar("T")
_NO_NUMBERS = "probability tensor contains"  # what sampling says of a policy that has become no number


def fit_ppo(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[LabelledPrompt],
    recipe: Recipe,
    *,
    device: str,
    steps: int,
    judge: Judge,
    watch: Watch,
    store: CheckpointStore | None = None,
    resume: bool = False,
    micro_batch: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FitResult:
    """Train the adapter of `model` in place over `steps` batches of answers; `fit` says what the rest means.

    Raises:
        Stopped: `watch.check` asked for it; the state is in `store`.
        TuneloopError: the run diverged, one answer at a time does not fit into memory, or a checkpoint cannot be
            written; or whatever else `watch.check` raises.
    """
    objective = recipe.objective
    assert isinstance(objective, PpoObjective)
    torch.manual_seed(recipe.run.seed)
    amp = recipe.run.dtype == "bfloat16"
    was_training = model.training
    model.eval()
    watch.screen.say(f"reference: {hold_reference(model)}")
    with disable_input_dtype_casting(model) if amp else nullcontext():
        learner = _Learner(model, tokenizer, recipe, objective, device, steps, watch, store, micro_batch, clock)
        try:
            made = learner.learn(prompts, judge, resume=resume)
        finally:
            release_reference(model)
            model.train(was_training)
    return made


class _Learner:
    """One run's moving parts: the actor, its optimiser, and how strongly it is held."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        recipe: Recipe,
        objective: PpoObjective,
        device: str,
        steps: int,
        watch: Watch,
        store: CheckpointStore | None,
        micro_batch: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._recipe, self._objective, self._steps, self._watch = recipe, objective, steps, watch
        self._clock = clock
        self._tokenizer = tokenizer
        size = micro_batch or int(recipe.run.micro_batch)
        self._state = RunState(micro_batch=size, learning_rate=recipe.learning_rate.value)
        self._tokens = 0
        critic = torch.nn.Linear(model.config.get_text_config().hidden_size, 1, device=device)
        torch.nn.init.zeros_(critic.weight)  # it expects nothing before it has seen anything
        torch.nn.init.zeros_(critic.bias)
        amp = recipe.run.dtype == "bfloat16"
        self._actor = Actor(
            model, critic, objective.temperature, lambda: torch.autocast(device, torch.bfloat16, enabled=amp)
        )
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        named |= {f"critic.{name}": value for name, value in critic.named_parameters()}
        trained = list(named.values())
        self._optimizer = torch.optim.AdamW(
            trained, lr=recipe.learning_rate.value, weight_decay=recipe.optim.weight_decay
        )
        kind, warmup = schedule_arguments(recipe.optim, steps)
        self._scheduler = get_scheduler(kind, self._optimizer, num_warmup_steps=warmup, num_training_steps=steps)
        self._random = torch.Generator().manual_seed(recipe.run.seed)
        self._updater = Updater(self._actor, self._optimizer, trained, recipe, self._random, watch.check)
        parts = {"optimizer": self._optimizer, "scheduler": self._scheduler}
        self._keeper = Keeper(store, recipe, named, parts, self._random, clock)
        self._started = clock()

    def learn(self, prompts: Sequence[LabelledPrompt], judge: Judge, *, resume: bool) -> FitResult:
        """All steps that are still to do."""
        learned = Learned(0, self._objective.kl_coefficient)
        if not resume:
            self._keeper.begin_anew()
        elif (kept := self._keeper.restore()) is not None:
            learned, state = kept
            size = min(state.micro_batch, self._state.micro_batch)
            self._go_on_with(state.model_copy(update={"micro_batch": size}))
            self._watch.screen.say(f"resumed after step {learned.step}")
        if learned.step == 0 and self._recipe.run.divergence.action == "rollback":
            self._keeper.keep(learned, self._state)
        self._started = self._clock()
        while learned.step < self._steps:
            try:
                learned = self._take(learned, prompts, judge)
            except Stopped as reason:
                raise self._left(learned.step, reason) from None
            except Diverged as error:
                learned = self._roll_back(error)
            except HalfUpdated as error:
                learned = self._with_less_memory(learned.step + 1, error)
        seconds = max(self._clock() - self._started, 1e-9)
        return FitResult(
            learned.step,
            learned.first_loss,
            learned.last_loss,
            seconds,
            self._tokens / seconds,
            micro_batch=self._state.micro_batch,
            peak_memory_bytes=peak_memory_bytes(),
            weights_step=learned.step,
            mfu=None,  # sampling, scoring and learning take turns: no one share of the peak says anything
        )

    def _take(self, learned: Learned, prompts: Sequence[LabelledPrompt], judge: Judge) -> Learned:
        """One step more: answers, what they are worth, and what they teach; told and, where it is due, kept.

        Raises:
            Stopped: it was asked to, before the step was whole.
            Diverged: it would have spoilt the weights.
        """
        objective, watch, step = self._objective, self._watch, learned.step + 1
        self._keeper.hold(learned)
        chosen, waiting = self._next(prompts, learned.waiting)
        control = KlControl(learned.kl_coefficient, objective.target_kl)
        try:
            rollout = self._fitting(step, lambda size: self._ask([prompts[index] for index in chosen], size))
            parts = {name: self._judged(step, judge, name, rollout) for name in judge.names}
            scores_B = torch.tensor([sum(found) for found in zip(*parts.values(), strict=True)]).to(rollout.old_BA)
            update = self._updater.improve(
                rollout, scores_B, control.coefficient, lambda work: self._fitting(step, work)
            )
        except Wild as error:
            places = [prompt.row.place for prompt in prompts]
            raise Diverged(step, str(error), name_rows(places, chosen, what="questions")) from None
        loss = update.policy_loss + objective.value_coefficient * update.value_loss
        self._tokens += int(rollout.attention_BT.sum())
        kl = float(rollout.kl_B.mean())
        metrics = self._metrics(rollout, update, loss, scores_B, control.coefficient) | {
            f"reward.{name}": sum(found) / len(found) for name, found in parts.items()
        }
        watch.log(metrics, step)
        watch.screen.progress(
            f"step {step}/{self._steps}  reward {metrics['reward']:.3f}  KL {kl:.2f} nats an answer  "
            f"loss {loss:.3f}  {metrics['tokens_per_s']:,.0f} tokens/s",
            keep=step % max(1, self._steps // 20) == 0 or step in {1, self._steps},
        )
        self._scheduler.step()
        first = loss if learned.step == 0 else learned.first_loss
        learned = Learned(step, control.after(kl).coefficient, waiting, first, loss)
        if self._keeper.is_due or step == self._steps:
            self._keeper.keep(learned, self._state)
        return learned

    def _left(self, step: int, reason: Stopped) -> Stopped:
        """What to end with: the state after this step is kept, what the next one has done so far is thrown away."""
        if not self._keeper.keeps or (step == 0 and not self._state.rollbacks):  # as it began it can begin again
            return reason
        self._keeper.keep_held(self._state)
        return reason.kept(step)

    def _ask(self, prompts: Sequence[LabelledPrompt], micro_batch: int) -> Rollout:
        try:
            return roll_out(
                self._actor,
                self._tokenizer,
                prompts,
                max_new_tokens=self._objective.max_new_tokens,
                micro_batch=micro_batch,
                check=self._watch.check,
            )
        except RuntimeError as error:
            if _NO_NUMBERS not in str(error):
                raise
            raise Wild("the policy's probabilities are no numbers") from None

    def _judged(self, step: int, judge: Judge, name: str, rollout: Rollout) -> list[float]:
        check = self._watch.check
        return self._fitting(step, lambda size: judge.part(name, rollout.answers, batch=size, check=check))

    def _metrics(
        self, rollout: Rollout, update: Update, loss: float, scores_B: torch.Tensor, kl_coefficient: float
    ) -> dict[str, float]:
        return {
            "loss": loss,
            "policy_loss": update.policy_loss,
            "value_loss": update.value_loss,
            "clipped_share": update.clipped_share,
            "grad_norm": update.grad_norm,
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "reward": float(scores_B.mean()),
            "kl": float(rollout.kl_B.mean()),
            "kl_coefficient": kl_coefficient,
            "answer_tokens": float(rollout.mask_BA.sum(dim=1).mean()),
            "finished_share": sum(answer.finished for answer in rollout.answers) / len(rollout.answers),
            "tokens_per_s": self._tokens / max(self._clock() - self._started, 1e-9),
        }

    def _fitting(self, step: int, work: Callable[[int], T]) -> T:
        """Do it; from the beginning again, with half the answers a forward pass, as often as memory is full."""
        random = RandomState.now()
        while True:
            try:
                return work(self._state.micro_batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            give_memory_back()  # here, where the error no longer holds on to what did not fit
            size = smaller(self._state.micro_batch, self._recipe.run.batch_size, self._objective.kind)
            self._watch.screen.say(
                f"out of memory in step {step} ({reason}); going on with micro-batch {size}, batch size "
                f"{self._recipe.run.batch_size} as before"
            )
            self._state = self._state.model_copy(update={"micro_batch": size})
            self._keeper.keep_held(self._state)  # whatever ends the run before its next checkpoint: the size is known
            random.restore()

    def _with_less_memory(self, step: int, error: HalfUpdated) -> Learned:
        """From the last checkpoint, because what the optimiser left is neither the old nor the new."""
        self._optimizer.zero_grad(set_to_none=True)
        give_memory_back()
        size = smaller(self._state.micro_batch, self._recipe.run.batch_size, self._objective.kind)
        found = self._keeper.restore()
        if found is None:
            raise TuneloopError(
                f"out of memory while the optimiser changed weights in step {step}, and there is no checkpoint from "
                f"before; set run.micro_batch to {size}"
            ) from None
        self._watch.screen.say(
            f"out of memory while the optimiser changed weights in step {step} ({error}); going on from step "
            f"{found[0].step} with micro-batch {size}, batch size {self._recipe.run.batch_size} as before"
        )
        self._go_on_with(self._state.model_copy(update={"micro_batch": size}))  # rollbacks since then stand
        self._keeper.keep(found[0], self._state)
        return found[0]

    def _roll_back(self, error: Diverged) -> Learned:
        rules = self._recipe.run.divergence
        changed = lowered(error, rules, self._state, self._objective.kind)
        found = self._keeper.restore()
        if found is None:
            raise TuneloopError(f"{error}; there is no whole checkpoint to roll back to") from None
        self._watch.screen.say(
            f"{error}; rolled back to step {found[0].step} with learning rate {changed.learning_rate:.3g} "
            f"({changed.rollbacks} of {rules.max_rollbacks})"
        )
        self._go_on_with(changed)
        self._keeper.keep(found[0], changed)  # whatever ends the run before its next checkpoint: the rate stays lowered
        return found[0]

    def _go_on_with(self, state: RunState) -> None:
        self._state = state
        set_peak_rate(self._optimizer, self._scheduler, state.learning_rate)

    def _next(self, prompts: Sequence[LabelledPrompt], waiting: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
        """(places of the next batch, those that wait): every prompt once in a new order, then again; none is short."""
        order, size = list(waiting), self._recipe.run.batch_size
        while len(order) < size:
            order += torch.randperm(len(prompts), generator=self._random).tolist()
        return order[:size], tuple(order[size:])
