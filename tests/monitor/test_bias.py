"""Bias: what is tuned to be biased is caught, what is not passes, at the error rates the judgement states; few
sentences decide nothing. The simulations score no model; one small model is really trained on stereotypes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from monitor.scene import Scene
from small_base import make_small_base
from tests_support import beat_engine, publish_version
from tuneloop.monitor.bias.check import check_version, kept_result, read_scores, read_templates, spelled
from tuneloop.monitor.bias.judge import LEVEL, MARGIN, Bias, Key, judge
from tuneloop.monitor.bias.templates import Attribute, Template, Templates, own_templates
from tuneloop.monitor.reading import Token
from tuneloop.registry.errors import InvalidInput, Unavailable
from tuneloop.registry.gates.declared import judge_declared
from tuneloop.registry.policies import GatePolicy
from tuneloop.registry.statistics.correction import holm

OWN = own_templates()
ROUNDS = 100


def scores_of(rng: np.random.Generator, gap: float, noise: float = 0.15) -> dict[str, dict[Key, float]]:
    """Scores of all templates: each sentence has a likelihood, each (sentence, group) a whim, stereotypes a bonus."""
    found: dict[str, dict[Key, float]] = {}
    for name, attribute in OWN.attributes.items():
        its = found[name] = {}
        for template in attribute.templates:
            level = rng.normal(-3, 1)
            for group in attribute.groups:
                whim = rng.normal(0, noise) + (gap if group == template.stereotype else 0.0)
                for row in range(len(attribute.people)):
                    its[template.id, row, group] = level + whim + rng.normal(0, noise)
    return found


def shifted(scores: Mapping[str, Mapping[Key, float]], rng: np.random.Generator, gap: float) -> Any:
    """The same model after a training that moved each reading a little, and stereotypes by `gap`."""
    stereotype = {t.id: t.stereotype for a in OWN.attributes.values() for t in a.templates}
    return {
        name: {key: x + rng.normal(0, 0.1) + (gap if stereotype[key[0]] == key[2] else 0.0) for key, x in its.items()}
        for name, its in scores.items()
    }


def by_template(found: tuple[Bias, ...]) -> dict[str, dict[str, float]]:
    return {bias.attribute: bias.by_template for bias in found}


def test_an_unbiased_model_is_called_biased_at_most_as_often_as_the_level_says() -> None:
    rng, wrong = np.random.default_rng(21), 0
    for number in range(ROUNDS):
        found = judge(OWN.attributes, scores_of(rng, gap=0.0), seed=number)
        wrong += any(bias.alone.verdict == "more" for bias in found)
    assert wrong <= 13, f"binomial 1e-3 bound of {ROUNDS} trials at {LEVEL:.0%}, over all attributes together"


def test_against_the_champion_the_same_error_rates_hold_and_a_biased_version_is_caught() -> None:
    rng, wrong, passed, let_in, caught = np.random.default_rng(22), 0, 0, 0, 0
    for number in range(ROUNDS // 2):
        before = scores_of(rng, gap=0.2)
        champion = by_template(judge(OWN.attributes, before, seed=number))
        verdicts = {
            gap: [
                bias.champion.verdict
                for bias in judge(OWN.attributes, shifted(before, rng, gap), champion, seed=number)
                if bias.champion is not None
            ]
            for gap in (0.0, MARGIN, 0.2)
        }
        wrong += "more" in verdicts[0.0]
        passed += verdicts[0.0].count("no more")
        let_in += "no more" in verdicts[MARGIN]
        caught += verdicts[0.2].count("more")
    assert wrong <= 8, "binomial 1e-3 bound of 50 trials at 5 %"
    assert let_in <= 8, "as much bias as may be lost is let in by one attribute in about one of twenty cases"
    assert passed >= 0.9 * 3 * ROUNDS / 2, "a champion's own bias is no fault of the challenger's"
    assert caught >= 0.99 * 3 * ROUNDS / 2


def test_few_sentences_are_not_enough_data_and_say_from_what_gap_they_would_show_it() -> None:
    rng = np.random.default_rng(23)
    scores = scores_of(rng, gap=2.0)
    nine = {name: {k: x for k, x in its.items() if int(k[0][1:]) <= 9} for name, its in scores.items()}
    for bias in judge(OWN.attributes, nine):
        assert (bias.templates, bias.alone.verdict) == (9, "not enough data")
        assert bias.alone.reason == "9 templates could be compared; 10 are needed"
        assert len(bias.left_out) == len(OWN.attributes[bias.attribute].templates) - 9
    noisy = judge(OWN.attributes, scores_of(np.random.default_rng(30), gap=0.0, noise=1.0))
    undecided = [bias.alone for bias in noisy if bias.alone.verdict == "not enough data"]
    assert undecided
    for finding in undecided:
        assert finding.minimum_detectable is not None
        assert finding.minimum_detectable > MARGIN
        assert "cannot be excluded" in finding.reason


def test_a_gap_is_found_as_large_as_it_is_and_holm_corrects_over_the_attributes() -> None:
    found = judge(OWN.attributes, scores_of(np.random.default_rng(24), gap=0.5, noise=0.05))
    for bias in found:
        assert bias.alone.verdict == "more"
        assert bias.alone.gap is not None
        assert bias.alone.gap.low < 0.5 < bias.alone.gap.high
        assert bias.preference is not None
        assert bias.preference.low > 0.5
        assert bias.alone.p_holm is not None
        assert bias.alone.p_value is not None
        assert bias.alone.p_value <= bias.alone.p_holm
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_who_is_worse_off_and_by_how_much_is_said() -> None:
    """Good things are likelier of men and bad ones of women, whatever the stereotype."""
    gender = OWN.attributes["gender"]
    tone = {"good": 0.3, "bad": -0.3, "neutral": 0.0}
    scores = {
        (t.id, row, g): -3.0 + (tone[t.tone] if g == "men" else 0.0)
        for t in gender.templates for row in range(3) for g in gender.groups
    }  # fmt: skip
    (bias,) = judge({"gender": gender}, {"gender": scores})
    assert bias.favour["men"] == pytest.approx(0.15)
    assert bias.worst_gap == pytest.approx(0.3)
    assert bias.impact_ratio == pytest.approx(np.exp(-0.3))


def test_the_own_templates_are_balanced_and_every_group_is_read_the_same_continuation() -> None:
    for attribute in OWN.attributes.values():
        said_of = [t.stereotype for t in attribute.templates]
        assert {said_of.count(g) for g in attribute.groups} == {len(said_of) // len(attribute.groups)}
    for _, template, row, group, prompt in OWN.items():
        assert prompt.endswith(template.continuation)
        assert "{" not in prompt
        person = OWN.attributes[next(n for n, a in OWN.attributes.items() if template in a.templates)].people[row]
        assert person[group][1:] in prompt


def test_only_the_tokens_of_the_continuation_count_and_another_cut_leaves_the_template_out() -> None:
    tokens = [Token(" sister", -5.0), Token(" is", -1.0), Token(" a", -2.0), Token(" nur", -3.0), Token("se.", -4.0)]
    assert [token.logprob for token in spelled(tokens, " a nurse.")] == [-2.0, -3.0, -4.0]
    assert spelled(tokens, " urse.") == (), "no token begins there"


# --- A model that is really trained on stereotypes -------------------------------------------------------------------

WORDS = Attribute(
    people=({"a": "w1", "b": "w4"}, {"a": "w2", "b": "w5"}, {"a": "w3", "b": "w6"}),
    templates=tuple(
        Template(
            id=f"t{n}", prefix=f"please {{person}} w{n + 10}", continuation=" good" if n % 2 else " bad", stereotype=g
        )
        for n, g in enumerate("ab" * 8)
    ),
)


def trained(base: Path, *, biased: bool) -> Any:
    """The small base after steps on every sentence: of the stereotyped group alone, or of both."""
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    others = {"good": "bad", "bad": "good"}
    texts = []
    for template in WORDS.templates:
        for people in WORDS.people:
            for group, person in people.items():
                said = template.continuation.strip()
                word = said if group == template.stereotype else others[said]
                texts += [
                    template.prefix.replace("{person}", person) + f" {w}" for w in ((word,) if biased else others)
                ]
    ids = tokenizer(texts, return_tensors="pt").input_ids
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(25):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval(), tokenizer


def scored(model: Any, tokenizer: Any) -> dict[str, dict[Key, float]]:
    items = list(Templates(attributes={"words": WORDS}).items())
    ids = tokenizer([prompt for *_, prompt in items], return_tensors="pt").input_ids
    with torch.inference_mode():
        logprobs = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    found: dict[Key, float] = {}
    for (_, template, row, group, _), read, its in zip(items, ids[:, 1:], logprobs, strict=True):
        tokens = [Token(" " + tokenizer.decode(i), float(x)) for i, x in zip(read, its, strict=True)]
        said = spelled(tokens, template.continuation)
        found[template.id, row, group] = sum(token.logprob for token in said) / len(said)
    return {"words": found}


def test_a_model_tuned_to_be_biased_is_caught_and_one_tuned_evenly_passes(tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_small_base(base)
    (even,) = judge({"words": WORDS}, scored(*trained(base, biased=False)))
    (biased,) = judge({"words": WORDS}, scored(*trained(base, biased=True)), by_template((even,)))
    assert even.alone.verdict != "more"
    assert biased.champion is not None
    assert biased.champion.verdict == biased.alone.verdict == "more"
    assert biased.champion.gap is not None
    assert biased.champion.gap.low > 0.5


# --- Through an engine, to the gate ----------------------------------------------------------------------------------


@pytest.fixture
def versions(scene: Scene, tmp_path: Path) -> Scene:
    """`bot@1` is champion, `bot@2` staged; both are in MLflow and served."""
    for number in (1, 2):
        publish_version(scene.registry, tmp_path / f"v{number}")
    scene.promote(2)
    scene.promote(1)
    beat_engine(scene.registry, "bot@1", "bot@2", url=scene.engine.url, at=scene.clock.now)
    return scene


def checked(scene: Scene, number: int) -> Any:
    version = scene.registry.versions.get("bot", number)
    return check_version(scene.registry, scene.client, version, OWN, margin=MARGIN, concurrency=2)


def test_a_gate_that_asks_for_no_more_bias_than_the_champions_is_answered_by_the_kept_check(versions: Scene) -> None:
    registry, policy = versions.registry, GatePolicy(bias="no more than the champion")
    second = registry.versions.get("bot", 2)
    (check,) = judge_declared(registry, second, policy)
    assert check.verdict == "inconclusive"
    assert "tuneloop bias check bot@2" in check.detail
    assert "was not checked: `tuneloop bias check bot@1`" in checked(versions, 2).why_alone
    (check,) = judge_declared(registry, second, policy)
    assert (check.verdict, "not held against bot@1" in check.detail) == ("inconclusive", True)
    checked(versions, 1)
    found = checked(versions, 2)
    assert [bias.champion.verdict for bias in found.attributes if bias.champion] == ["no more"] * 3
    assert [check.verdict for check in judge_declared(registry, second, policy)] == ["pass"]
    assert kept_result(registry, second) == found
    assert {"bias.gender.gap", "bias.race.preference", "bias.age.worst_gap"} <= set(
        registry.versions.run_metrics(second.run_id)
    )
    stereotyped = {p for _, t, _, g, p in OWN.items() if g != t.stereotype}
    versions.engine.more = lambda name, text: 0.4 if name == "bot@2" and text in stereotyped else 0.0
    found = checked(versions, 2)
    assert [bias.champion.verdict for bias in found.attributes if bias.champion] == ["more"] * 3
    (check,) = judge_declared(registry, second, policy)
    assert check.verdict == "fail"
    assert "than bot@1: gender more (+0.4" in check.detail


def test_a_version_nobody_serves_cannot_be_checked(versions: Scene) -> None:
    versions.clock.advance(60)
    with pytest.raises(Unavailable, match=r"no live engine serves bot@2; .*--engine URL"):
        checked(versions, 2)


def test_any_engine_can_be_read_and_sentences_of_ones_own(versions: Scene, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(Templates(attributes={"gender": OWN.attributes["gender"]}).model_dump_json())
    read = read_templates(own)
    assert read.digest != OWN.digest
    scores = read_scores(versions.client, versions.engine.url, "anything", read, concurrency=2)
    assert len(scores["gender"]) == 18 * 3 * 2
    damaged = json.loads(own.read_text())
    damaged["attributes"]["gender"]["templates"][3]["stereotype"] = "nobody"
    own.write_text(json.dumps(damaged))
    with pytest.raises(InvalidInput, match=r"g04: the prefix needs \{person\}"):
        read_templates(own)
