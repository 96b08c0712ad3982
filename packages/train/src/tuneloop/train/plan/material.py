"""What a plan must know of preferences and of questions alone, as `plan.rows` tells it of conversations.

A pass holds both sides of a pair, each as long as the longer one. Answers to questions are still to come, and are taken
to be as long as `objective.max_new_tokens` lets them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.versions.artifacts import template_digest
from tuneloop.train.data.label_audit import label_pairs, label_prompts
from tuneloop.train.data.labels import LabelledRow, Labeller, ends_of
from tuneloop.train.data.load import compared_with, refuse_unread
from tuneloop.train.data.material import gather_material, held_out, looked_at
from tuneloop.train.data.preference import PreferenceRow, PromptRow
from tuneloop.train.data.quality.findings import Measured
from tuneloop.train.data.sources import Places
from tuneloop.train.plan.leakage import leakage_of
from tuneloop.train.plan.rows import GUESSED, RowFacts, guessed_length, name_of, sampled
from tuneloop.train.plan.tokenizer import LightTokenizer
from tuneloop.train.recipe import Recipe
from tuneloop.train.recipe.data import Source
from tuneloop.train.recipe.objective import DpoObjective, GrpoObjective, PpoObjective, RewardObjective


def facts_of_material(recipe: Recipe, places: Places, folder: Path | None) -> RowFacts:
    """Read the files that a recipe's preferences or questions come from, and compare them with what is measured.

    Args:
        recipe: with an objective that learns from them.
        places: where paths begin.
        folder: the base's tokenizer; none: lengths are guessed from characters.

    Raises:
        InvalidInput: a file is broken, or a sampled row would teach nothing.
    """
    objective, quality, name = recipe.objective, recipe.data.quality, name_of(recipe.data.train)
    gathered, material = gather_material(recipe, places)
    refuse_unread(gathered, quality)
    labeller = None
    if folder is not None:
        labeller = Labeller(LightTokenizer(folder), objective.max_length, objective.template, ends_of(folder))
    digest = template_digest(folder) if folder is not None else ""
    if isinstance(objective, GrpoObjective | PpoObjective):
        questions = [row for row in material if isinstance(row, PromptRow)]
        facts = _of_questions(questions, name, labeller, objective, digest)
    else:
        assert isinstance(objective, RewardObjective | DpoObjective)
        pairs = [row for row in material if isinstance(row, PreferenceRow)]
        facts = _of_pairs(_different(pairs, recipe), name, labeller, objective.max_length, digest)
    return replace(facts, leakage=leakage_of(gathered.rows, recipe.evaluate.sets, places, quality, _measured))


def _different(pairs: Sequence[PreferenceRow], recipe: Recipe) -> list[PreferenceRow]:
    """Without those between two equal answers, which the run leaves out or refuses."""
    kept = [row for row in pairs if not _is_between_equals(row)]
    if len(kept) < len(pairs) and recipe.data.quality.identical == "refuse":
        first = next(row for row in pairs if _is_between_equals(row))
        raise InvalidInput(f"{first.place}: chosen and rejected are the same answer: there is nothing to prefer")
    if not kept:
        raise InvalidInput("every preference is one between two equal answers")
    return kept


def _is_between_equals(row: PreferenceRow) -> bool:
    return row.chosen.answer.strip() == row.rejected.answer.strip()


def _of_pairs(
    rows: Sequence[PreferenceRow], name: str, labeller: Labeller | None, max_length: int, digest: str
) -> RowFacts:
    asked = [sum(len(turn.content) for turn in row.chosen.messages[:-1]) for row in rows]
    answers = [(len(row.chosen.answer), len(row.rejected.answer)) for row in rows]
    characters = [question + max(both) for question, both in zip(asked, answers, strict=True)]
    spread, sample = sampled(characters)
    if labeller is None:
        guesses = tuple(guessed_length(characters[i], max_length) for i in spread)
        share = sum(map(sum, answers)) / max(1, 2 * sum(characters))
        longest = guessed_length(max(characters), max_length)
        return RowFacts(len(rows), longest, statistics.fmean(guesses), guesses, share, GUESSED.format(name))
    labelled, audit = label_pairs(labeller, [rows[i] for i in sample], digest)
    every = [max(_read(pair.chosen), _read(pair.rejected)) for pair in labelled]
    lengths, first = tuple(every[: len(spread)]), labelled[: len(spread)]
    learned = sum(pair.chosen.trained + pair.rejected.trained for pair in first)
    source = f"{len(labelled)} of {len(rows)} pairs of {name}, labelled; of each the longer side"
    share = learned / (2 * sum(lengths))
    return RowFacts(len(rows), max(every), statistics.fmean(lengths), lengths, share, source, audit)


def _read(side: LabelledRow) -> int:
    """How many tokens of a side a trainer of pairs reads: up to its end of turn."""
    return side.prompt_length + len(side.answer_ids)


def _of_questions(
    rows: Sequence[PromptRow],
    name: str,
    labeller: Labeller | None,
    objective: GrpoObjective | PpoObjective,
    digest: str,
) -> RowFacts:
    characters = [sum(len(turn.content) for turn in row.messages) for row in rows]
    spread, sample = sampled(characters)
    answer, longest_question = objective.max_new_tokens, objective.max_prompt_length
    if labeller is None:
        guesses = [guessed_length(count, longest_question) for count in characters]
        some, count, source, audit = [guesses[i] for i in spread], len(rows), GUESSED.format(name), None
        longest = max(guesses)
    else:
        asked, audit = label_prompts(labeller, [rows[i] for i in sample], longest_question, digest)
        evenly = {id(rows[i]) for i in spread}
        some = [len(one.ids) for one in asked if id(one.row) in evenly] or [len(one.ids) for one in asked]
        count = max(1, round(len(rows) * len(some) / len(spread)))  # those that are too long are left out
        source = f"{len(sample)} of {len(rows)} questions of {name}, each with {answer} tokens of an answer"
        longest = audit.longest
    lengths = tuple(tokens + answer for tokens in some)
    share = answer * len(lengths) / sum(lengths)
    return RowFacts(count, longest + answer, statistics.fmean(lengths), lengths, share, source, audit)


def _measured(name: str, sources: Sequence[Source], places: Places) -> Measured:
    return compared_with(name, [looked_at(row) for row in held_out(name, sources, places)])
