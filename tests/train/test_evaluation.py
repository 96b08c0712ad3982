"""Before against after on a real tiny model: padding changes nothing, answers end, slices and doubts are said."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.nouns import Message
from tuneloop.train.base import Base
from tuneloop.train.data.label_audit import LabelAudit, label_rows
from tuneloop.train.data.labels import IGNORED, LabelledPair, LabelledRow, Labeller
from tuneloop.train.data.rows import Row, read_rows
from tuneloop.train.evaluation import measure
from tuneloop.train.evaluation.batching import batches
from tuneloop.train.evaluation.compare import compare, shown_table
from tuneloop.train.evaluation.measure import Answer, EvaluationSet, SetScore, greedy_answers, score_rows
from tuneloop.train.evaluation.metrics import Metric
from tuneloop.train.evaluation.preference import PreferenceSet
from tuneloop.train.evaluation.remarks import remarks_on_answers, remarks_on_set
from tuneloop.train.evaluation.statistics import RowScore
from tuneloop.train.examples import Examples, Prepared
from tuneloop.train.recipe.tuning import LoraTuning
from tuneloop.train.tuning import models


def row(question: str, answer: str, group: str | None = None) -> Row:
    return Row((Message(role="user", content=question), Message(role="assistant", content=answer)), group=group)


ROWS = tuple(row("why " * (1 + n % 7), f"because of {n}" + " and so on" * (n % 5)) for n in range(16))


@pytest.fixture(scope="module")
def parts(tiny: Base) -> tuple[Any, Any, Labeller, list[LabelledRow]]:
    tokenizer = models.load_tokenizer(tiny)
    labeller = Labeller(tokenizer, 96)
    model = models.load_base(tiny, dtype="float32", device="cpu", attention="sdpa")
    model = models.new_adapter(model, LoraTuning(rank=4), seed=0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(1))
    return model, tokenizer, labeller, label_rows(labeller, ROWS, tiny.template_digest)[0]


def every_logit(model: Any, rows: list[LabelledRow]) -> list[RowScore]:
    """The plain way: every position through the output layer, one row at a time."""
    found = []
    for labelled in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([labelled.ids])).logits[0, :-1].double()
        targets = torch.tensor(labelled.labels[1:])
        learned = targets != IGNORED
        nll = -torch.log_softmax(logits, dim=-1)[learned].gather(1, targets[learned][:, None])
        found.append(RowScore(float(nll.sum()), int(learned.sum())))
    return found


def test_scores_do_not_depend_on_batch_padding_or_left_out_logits(
    parts: tuple[Any, Any, Labeller, list[LabelledRow]],
) -> None:
    model, _, _, labelled = parts
    reference = every_logit(model, labelled)

    def scores(batch: int, pad_id: int = 2) -> list[RowScore]:
        return score_rows(model, labelled, pad_id=pad_id, check=lambda: None, batch=batch)

    for found in (scores(1), scores(16), scores(5, pad_id=77)):
        assert [score.tokens for score in found] == [score.tokens for score in reference]
        assert [score.nll for score in found] == pytest.approx([score.nll for score in reference], rel=1e-5)
    without = score_rows(Unsparing(model), labelled, pad_id=2, check=lambda: None)
    assert [score.nll for score in without] == pytest.approx([score.nll for score in reference], rel=1e-5)


def test_what_all_rows_begin_with_is_read_once(parts: tuple[Any, Any, Labeller, list[LabelledRow]], tiny: Base) -> None:
    model, _, labeller, _ = parts
    system = Message(role="system", content="You answer why questions, briefly and with a reason, whoever asks them.")
    rows = label_rows(labeller, [Row((system, *one.messages)) for one in ROWS[:6]], tiny.template_digest)[0]
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _module, given: read.append(given[0].numel()))
    found = score_rows(model, rows, pad_id=2, check=lambda: None, batch=1)
    hook.remove()
    beginning, *rests = read
    assert beginning > 20
    assert rests == sorted(len(one.ids) - beginning for one in rows)
    in_batches = score_rows(model, rows, pad_id=2, check=lambda: None, batch=4)
    expected = pytest.approx([score.nll for score in every_logit(model, rows)], rel=1e-5)
    assert [score.nll for score in found] == expected
    assert [score.nll for score in in_batches] == expected


def test_rows_that_learn_from_their_first_token_share_nothing(
    parts: tuple[Any, Any, Labeller, list[LabelledRow]],
) -> None:
    model, _, _, labelled = parts
    rows = [replace(labelled[0], labels=labelled[0].ids)] * 3
    found = score_rows(model, rows, pad_id=2, check=lambda: None)
    assert [score.nll for score in found] == pytest.approx([s.nll for s in every_logit(model, rows)], rel=1e-5)
    assert {score.tokens for score in found} == {len(rows[0].ids) - 1}


class Unsparing(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A model as of the few architectures that cannot leave logits out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.device, self.config = model, model.device, model.config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_only_learned_positions_go_through_the_output_layer(
    parts: tuple[Any, Any, Labeller, list[LabelledRow]],
) -> None:
    model, _, _, labelled = parts
    seen: list[int] = []
    hook = (
        model.get_base_model()
        .get_output_embeddings()
        .register_forward_hook(lambda _module, _given, logits: seen.append(logits.numel() // logits.shape[-1]))
    )
    score_rows(model, labelled, pad_id=2, check=lambda: None)
    hook.remove()
    assert seen == [1, sum(row.trained for row in labelled)], "one for what all rows begin with"


def test_a_batch_of_long_rows_holds_fewer() -> None:
    found = list(batches([10, 60, 10, 40, 200, 45], 3, 100))
    assert found == [[0, 2], [3, 5], [1], [4]]


def test_half_the_rows_at_a_time_are_half_the_tokens_of_long_ones_too(
    parts: tuple[Any, Any, Labeller, list[LabelledRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a batch that did not fit, and held few rows because they are long, would be tried again as it was."""
    model, _, _, labelled = parts
    rows, looks = [labelled[0]] * 8, list[int]()
    monkeypatch.setattr(measure, "BATCH_TOKENS", 4 * len(labelled[0].ids))
    counts = []
    for batch in (16, 8):
        looks.clear()
        score_rows(model, rows, pad_id=2, check=lambda: looks.append(1), batch=batch)
        counts.append(len(looks))
    assert counts == [2, 4]


def test_an_answer_ends_where_an_engine_would_end_it(parts: tuple[Any, Any, Labeller, list[LabelledRow]]) -> None:
    """The base's generation config may name more end tokens than its tokenizer; a batch goes on for the others."""
    model, tokenizer, labeller, _ = parts
    asked = [row("why " * n, "so") for n in (1, 4, 9)]

    def ask(batch: int) -> list[Answer]:
        return greedy_answers(model, tokenizer, labeller, asked, max_new_tokens=6, check=lambda: None, batch=batch)

    endless = ask(3)
    assert not any(answer.ended for answer in endless)
    config = model.get_base_model().generation_config
    stop = tokenizer(endless[0].text, add_special_tokens=False)["input_ids"][2]
    before = config.eos_token_id
    config.eos_token_id = [2, stop]
    try:
        ended = ask(3)
        assert ended[0].ended
        assert endless[0].text.startswith(ended[0].text)
        assert len(ended[0].text) < len(endless[0].text)
        assert ended == ask(1)
    finally:
        config.eos_token_id = before


def chosen_set(groups: list[str | None], asked: int) -> EvaluationSet:
    rows = tuple(row(f"q{n}", f"word {n}", group) for n, group in enumerate(groups))
    return EvaluationSet("old", rows, (), rows[:asked], "sha256:0")


def scored(chosen: EvaluationSet, nll: float, answers: list[str], scores: list[float] | None = None) -> SetScore:
    rows = tuple(RowScore(nll * 4 + n % 3, 4) for n in range(len(chosen.rows)))
    by_row = {"mine": tuple(scores)} if scores is not None else {}
    return SetScore(rows, 1.0, "sig", tuple(Answer(text, True) for text in answers), by_row)


def test_slices_are_compared_and_small_ones_are_named_not_shown() -> None:
    chosen = chosen_set(["a"] * 12 + ["b"] * 20 + ["c"] * 3 + [None], 36)
    texts = [r.answer for r in chosen.rows]
    before = scored(chosen, 2.0, ["word"] * 36, [0.0] * 36)
    after = scored(chosen, 1.5, texts, [1.0] * 12 + [0.0] * 24)
    found = compare(chosen, before, after, min_rows=10)
    assert [(one.measure, one.group, one.rows) for one in found.slices] == [
        (measure, group, rows) for measure in ("perplexity", "bleu", "mine") for group, rows in (("b", 20), ("a", 12))
    ]
    assert found.too_few[:2] == (("perplexity", "c", 3), ("perplexity", "(none)", 1))
    by_slice = {one.group: one for one in found.slices if one.measure == "mine"}
    assert by_slice["a"].difference.estimate == 1.0
    assert by_slice["b"].difference.estimate == 0.0
    whole = {one.measure: one for one in found.whole}
    assert whole["perplexity"].difference.estimate == pytest.approx(-0.5)
    assert whole["mine"].after.estimate == pytest.approx(1 / 3)
    assert whole["mine"].before.interval is None  # all alike: resampling them cannot tell how sure that is
    interval = whole["mine"].difference.interval
    assert interval is not None
    assert interval.low < 1 / 3 < interval.high
    shown = shown_table([found])
    assert "old, mine: not enough rows (under 10) in 2 slices: c (3), (none) (1)" in shown
    assert "-0.500 nats/token" in shown


def test_too_few_rows_give_an_estimate_without_an_interval() -> None:
    chosen = chosen_set([None] * 9, 9)
    found = compare(chosen, scored(chosen, 2.0, ["x"] * 9), scored(chosen, 1.0, ["x"] * 9), min_rows=10)
    assert found.whole[0].difference_shown == "-1.000 nats/token"
    assert found.interval_metrics() == {"before": {}, "after": {}}
    assert not found.slices


def test_rows_that_are_measured_up_to_a_cut_are_said_of_every_kind_of_held_out_set() -> None:
    whole = LabelledRow((1, 2), (IGNORED, 2), truncated=False, ends=1, prompt_length=1)
    cut = dataclasses.replace(whole, truncated=True)
    chosen = dataclasses.replace(chosen_set([None] * 3, 3), labelled=(whole, cut, whole))
    pairs = PreferenceSet("pairs", (), (LabelledPair(whole, whole), LabelledPair(whole, cut)), "sha256:p")
    audit = LabelAudit(1, 2, 1, 0, 0, 2, "<|im_end|>", "sha256:t")
    prepared = Prepared(Examples([whole], audit), [cut], {"old": chosen}, {"pairs": pairs})
    assert prepared.remarks() == [
        f"{name} rows were cut at objective.max_length and are measured up to there; raise it"
        for name in ("validation: 1 of 1", "old: 1 of 3", "pairs: 1 of 2")
    ]
    calm = dataclasses.replace(chosen, labelled=(whole,))
    assert Prepared(Examples([whole], audit), [], {"old": calm}, {}).remarks() == []


def test_what_a_score_hides_is_said() -> None:
    chosen = chosen_set([None] * 6, 6)
    twice = dataclasses.replace(chosen, rows=(*chosen.rows, row("Q0 ", "word  0")))
    assert remarks_on_set(chosen) == []
    assert remarks_on_set(twice)[0].startswith("old: 1 of 7 rows repeat another")
    good = scored(chosen, 1.0, [f"answer {n}" for n in range(6)])
    assert remarks_on_answers(chosen, good) == []
    bad = dataclasses.replace(
        good, answers=(Answer("", True), *[Answer("yes yes", False)] * 5), failed={"mine": "metric mine failed: x"}
    )
    empty = "old: 1 of 6 answers are empty"
    said = remarks_on_answers(chosen, bad)
    assert [text[: len(empty)] for text in said[1:2]] == [empty]
    assert said[0] == "old: metric mine failed: x"
    assert "5 of 6 answers are the same, 'yes yes': the model has collapsed" in said[2]
    assert "5 of 6 answers were cut at evaluate.max_new_tokens" in said[3]


def test_equal_answers_to_questions_that_want_them_are_no_collapse() -> None:
    rows = tuple(row(f"is {n} even?", "no") for n in range(6))
    chosen = EvaluationSet("old", rows, (), rows, "sha256:0")
    assert remarks_on_answers(chosen, scored(chosen, 1.0, ["no"] * 6)) == []


def test_a_metric_that_fails_after_training_costs_its_figure_not_the_model(
    parts: tuple[Any, Any, Labeller, list[LabelledRow]],
) -> None:
    model, tokenizer, _, labelled = parts
    chosen = EvaluationSet("old", ROWS[:2], tuple(labelled[:2]), ROWS[:1], "sha256:0")
    broken = Metric("mine", lambda *_: [])

    def score(tolerant: bool) -> SetScore:
        return measure.score_set(
            model,
            tokenizer,
            chosen,
            [Answer("so", ended=True)],
            check=lambda: None,
            metrics=[broken],
            tolerant=tolerant,
        )

    with pytest.raises(InvalidInput, match="metric mine gave 0 scores"):
        score(tolerant=False)
    found = score(tolerant=True)
    assert set(found.failed) == {"mine"}
    assert set(found.metrics("old")) == {"perplexity.old", "nll.old", "bleu.old"}


def test_rows_keep_the_field_to_slice_by_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    values = [{"instruction": f"q{n}", "output": "a", "topic": topic} for n, topic in enumerate(["x", 3, None])]
    path.write_text("".join(json.dumps(value) + os.linesep for value in values))
    plain, asked = read_rows(path), read_rows(path, group_by="topic")
    assert [one.group for one in plain.rows] == [None] * 3
    assert [one.group for one in asked.rows] == ["x", "3", None]
    assert (plain.ignored, asked.ignored) == ({"topic": 3}, {})
    assert plain.rows == asked.rows
    with pytest.raises(InvalidInput, match=r"slice_by 'subject': no row has that field \(fields to slice by: topic\)"):
        read_rows(path, group_by="subject")
