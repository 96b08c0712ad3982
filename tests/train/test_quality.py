"""Each fault is found in rows made to have it, and leads to what the recipe says; nothing is left out uncounted."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tuneloop.registry.errors import InvalidInput, Refused
from tuneloop.registry.nouns import Message
from tuneloop.registry.redaction import redact
from tuneloop.train.data.check import check_files
from tuneloop.train.data.load import load_data
from tuneloop.train.data.minhash import candidates, candidates_between, sign
from tuneloop.train.data.near import grams, jaccard, normal
from tuneloop.train.data.quality import detectors
from tuneloop.train.data.quality.advice import size_advice
from tuneloop.train.data.quality.findings import Findings, Measured, judge_rows
from tuneloop.train.data.quality.look import Columns, look
from tuneloop.train.data.quality.page import render
from tuneloop.train.data.rows import Row
from tuneloop.train.data.store import Chosen
from tuneloop.train.recipe import load_recipe
from tuneloop.train.recipe.data import QualitySection
from tuneloop.train.verbs.data import data as data_verb

OFF: dict[str, Any] = {
    **dict.fromkeys(("duplicates", "near_duplicates", "conflicts", "leakage", "near_leakage", "long"), "off"),
    **dict.fromkeys(("language", "toxicity", "pii", "balance", "length_balance"), "off"),
}
WORDS = ["".join(random.Random(n).choices("etaoinshrdlu", k=random.Random(n).randint(3, 8))) for n in range(800)]


def row(question: str, answer: str, place: str = "") -> Row:
    return Row((Message(role="user", content=question), Message(role="assistant", content=answer)), place)


def text(seed: int, words: int = 30) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def plain(number: int) -> Row:
    return row(f"What of {text(number, 9)}?", f"It is {text(number + 10_000, 20)}.", f"f:{number + 1}")


def judged(rows: list[Row], measured: list[Row] | None = None, **quality: Any) -> Findings:
    section = QualitySection(**{**OFF, **quality})
    columns = look(rows, section)
    against = [Measured("test", measured, look(measured, section))] if measured is not None else []
    return judge_rows(columns, rows, section, against)


def dropped(found: Findings) -> list[int]:
    return [int(n) for n in np.flatnonzero(~found.kept)]


def test_repeats_conflicts_and_near_copies_are_told_apart_and_the_first_stays() -> None:
    rows = [plain(n) for n in range(30)]
    rows += [
        row(rows[3].prompt.upper(), f"  {rows[3].answer}", "f:31"),
        row(rows[4].prompt, "Quite another answer to that.", "f:32"),
        row(f"{rows[5].prompt} Please", rows[5].answer, "f:33"),
    ]
    found = judged(rows, duplicates="drop", conflicts="drop", near_duplicates="drop")
    assert dropped(found) == [30, 31, 32]
    assert found.dropped == {"duplicates": 1, "conflicts": 1, "near_duplicates": 1}
    shown = {one.check: one.examples for one in found.findings if one.rows}
    assert shown["duplicates"] == ("f:31: says what f:4 says",)
    assert shown["conflicts"] == ("f:32: answers otherwise than f:5",)
    assert re.fullmatch(r"f:33: is 9\d% like f:6", shown["near_duplicates"][0])


def test_a_row_that_several_checks_would_drop_counts_once() -> None:
    rows = [plain(n) for n in range(5)]
    rows.append(rows[0])
    found = judged(rows, [rows[0]], duplicates="drop", leakage="drop", near_duplicates="drop")
    assert found.dropped == {"duplicates": 1, "leakage": 1}
    assert dropped(found) == [0, 5]
    assert sum(found.dropped.values()) == len(dropped(found))


def test_rows_that_are_measured_are_found_in_training_exactly_and_nearly() -> None:
    rows = [plain(n) for n in range(40)]
    measured = [
        plain(100),
        rows[7],
        row(f"{rows[8].prompt} So", rows[8].answer),
        row(rows[9].prompt, "Something else."),
    ]
    found = judged(rows, measured, leakage="refuse", near_leakage="drop")
    by_check = {one.check: one for one in found.findings}
    assert (by_check["leakage"].rows, by_check["near_leakage"].rows) == (1, 2)
    assert dropped(found) == [8, 9]
    assert len(found.refusals) == 1
    assert "f:8: is also in test" in found.refusals[0]
    assert "set data.quality.leakage to drop or warn" in found.refusals[0]


@pytest.mark.parametrize("words", [12, 40, 200])
def test_nearly_every_pair_over_the_threshold_is_found_and_none_under_it_is_claimed(words: int) -> None:
    draw = random.Random(words)
    rows = []
    for number in range(400):
        original = text(number, words).split()
        changed = list(original)
        for _ in range(draw.randint(1, max(1, words // 12))):
            changed[draw.randrange(words)] = draw.choice(WORDS)
        rows += [row("Q", " ".join(original)), row("Q", " ".join(changed))]
    near = {
        2 * n + 1
        for n in range(400)
        if jaccard(grams(f"Q\n{rows[2 * n].answer}"), grams(f"Q\n{rows[2 * n + 1].answer}")) >= 0.8
        and rows[2 * n] != rows[2 * n + 1]
    }
    found = set(dropped(judged(rows, near_duplicates="drop", duplicates="off")))
    same = {2 * n + 1 for n in range(400) if rows[2 * n] == rows[2 * n + 1]}
    assert len(near) > 100
    assert found - same <= near
    assert len(found & near) >= 0.97 * len(near)


def test_finding_pairs_takes_linear_time_also_when_every_row_is_the_same() -> None:
    signatures = np.repeat(sign([normal(text(1))]), 20_000, axis=0)
    assert len(candidates(signatures, 0.8)) <= 2 * 20_000
    assert len(candidates_between(signatures, signatures, 0.8)) <= 2 * 20_000


def test_signatures_do_not_depend_on_the_batch_and_short_texts_have_one() -> None:
    texts = [normal(text(n, n)) for n in range(1, 40)] + ["a", "", "日本語"]
    alone = np.concatenate([sign([one]) for one in texts])
    assert (sign(texts) == alone).all()
    assert (sign(["a"]) != sign(["b"])).any()


@pytest.mark.parametrize(
    ("check", "bad", "quality"),
    [
        ("long", row("How much?", "word " * 30), {"max_words": 20}),
        (
            "language",
            row("Wie geht es dir heute?", "Mir geht es gut, danke der Nachfrage, und dir?"),
            {"languages": ("en",)},
        ),
        ("toxicity", row("You are a stupid idiot", "Fuck you, you piece of shit, I hate you"), {}),
        ("pii", row("Who can help me?", "Write to ann.miller@example.com about it"), {}),
    ],
)
@pytest.mark.parametrize("action", ["drop", "warn", "refuse", "off"])
def test_every_check_of_a_text_does_what_the_recipe_says(
    check: str, bad: Row, quality: dict[str, Any], action: str
) -> None:
    good = [row("When does the shop open on Monday?", "The shop opens at nine in the morning.", "f:1")]
    if check == "language" and action == "off":
        quality = {}
    found = judged([*good, bad], **{check: action, **quality})
    one = next(one for one in found.findings if one.check == check)
    assert (one.action, one.rows) == (action, int(action != "off"))
    assert dropped(found) == ([1] if action == "drop" else [])
    assert bool(found.refusals) == (action == "refuse")


def test_one_answer_that_outweighs_the_others_is_said_with_its_share() -> None:
    rows = [row(f"Is {text(n, 5)} in stock?", "Yes." if n % 4 else f"No, {text(n, 4)}.", f"f:{n}") for n in range(40)]
    found = judged(rows, balance="refuse")
    assert "75% of the rows; 11 different answers" in found.refusals[0]
    assert not judged(rows, balance="refuse", max_answer_share=0.8).refusals


def test_a_few_long_answers_that_outweigh_the_others_are_said_with_their_share() -> None:
    def of(long: int) -> list[Row]:
        return [row(f"What of {text(n, 5)}?", text(n + 99, 10 if n % 10 else long), f"f:{n}") for n in range(50)]

    [reason] = judged(of(200), length_balance="refuse").refusals
    assert "they hold 69% of the answers' words" in reason
    assert "f:0: 200 words" in reason
    assert "set data.quality.length_balance to warn" in reason
    assert not judged(of(200), length_balance="refuse", max_long_share=0.7).refusals
    assert not judged(of(100), length_balance="refuse").refusals, "half of the words"
    assert not judged(of(200)[:49], length_balance="refuse").refusals, "too few rows to have a longest tenth"


def test_a_score_is_the_product_of_its_parts_and_a_threshold_drops_rows_under_it() -> None:
    good = plain(1)
    rows = [
        good,
        row("Say it", "yes"),  # 3 words of 10
        row("You are a stupid idiot, and so is your dog", "I hate you, you fucking idiot, all of you"),
        row(
            "A menu for a small caf\u00c3\u00a9 in the old town",
            "Cr\u00c3\u00a8me br\u00c3\u00bbl\u00c3\u00a9e and other sweet things, \ufffd\ufffd",
        ),
        row("Say the same thing again and again please", "spam eggs " * 100),
    ]
    columns = look(rows, QualitySection())
    assert columns.parts.prod(axis=1) == pytest.approx(columns.scores)
    assert columns.scores[0] == 1.0
    assert columns.parts[1, 0] == pytest.approx(0.3)
    assert all(columns.parts[2:, part][n] < 0.5 for n, part in enumerate((2, 3, 4)))
    found = judged(rows, toxicity="warn", min_score=0.8)
    assert found.dropped == {"score": 4}
    assert dropped(found) == [1, 2, 3, 4]
    assert not judged(rows, min_score=None).dropped


@pytest.mark.parametrize(
    "words",
    [
        "mail ann.miller@example.com",
        "call +1 212 555 0143",
        "call (212) 555-0143 today",
        "my card is 4111 1111 1111 1111",
        "transfer to DE89 3702 0044 0532 0130 00",
        "IBAN GB82WEST12345698765432",
        "SSN 078-05-1120",
        "host 192.168.17.24 is down",
        "at 2001:0db8:85a3:0000:0000:8a2e:0370:7334",
        "coins to 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa",
        "ruf 030 901820 an",
    ],
)
def test_what_redaction_finds_is_never_passed_over_for_speed(words: str) -> None:
    assert detectors.personal_data(words) == redact(words).found


LONG_ENGLISH = (
    "You are a helpful assistant of a large shop. You answer each question of a customer briefly, with a reason, in "
    "the tone of the house, and you never promise what you do not know for sure. When does the delivery come?"
)
ENGLISH = "It comes on Monday between nine and twelve o'clock, and somebody will call you before."
GERMAN = "Die Lieferung kommt am Montag zwischen neun und zwölf Uhr, und Sie werden vorher angerufen."


def test_an_answer_in_another_language_is_seen_after_a_long_question() -> None:
    """One long system prompt before each row would otherwise be all that is read of any."""
    rows = [row(LONG_ENGLISH, ENGLISH), row(LONG_ENGLISH, GERMAN), row("When?", GERMAN), row(LONG_ENGLISH, "Now.")]
    found = judged(rows, language="drop", languages=("en",))
    assert dropped(found) == [1, 2]
    one = next(one for one in found.findings if one.check == "language")
    assert [example.split("looks like ")[1] for example in one.examples] == ["en and de", "de"]
    assert dropped(judged(rows, language="drop", languages=("en", "de"))) == []
    system = Message(role="system", content=LONG_ENGLISH)
    asked = Row((system, Message(role="user", content=GERMAN), Message(role="assistant", content=GERMAN)), "")
    assert dropped(judged([rows[0], asked], language="drop", languages=("en",))) == [1]


@pytest.mark.parametrize(
    ("rows", "formats", "method", "expected"),
    [
        (500, {"instruction": 500}, "lora", ["few for an adapter", "few for instruction tuning"]),
        (8_000, {"instruction": 8_000}, "lora", []),
        (8_000, {"chat": 8_000}, "full", ["few for full fine-tuning"]),
        (60_000, {"instruction": 60_000}, "qlora", ["many for an adapter", "many for instruction tuning"]),
        (900, {"preference": 900}, "lora", ["few for preferences"]),
    ],
)
def test_sizes_are_advice_with_a_reason(rows: int, formats: dict[str, int], method: str, expected: list[str]) -> None:
    said = size_advice(rows, formats, method=method)
    assert len(said) == len(expected)
    assert all(part in line and ": " in line for part, line in zip(expected, said, strict=True))


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[Path]]:
    def write(**rows: list[Any]) -> list[Path]:
        made = []
        for name, values in rows.items():
            path = tmp_path / f"{name}.jsonl"
            lines = [value if isinstance(value, str) else value.line() for value in values]
            path.write_text("".join(f"{line}\n" for line in lines))
            made.append(path)
        return made

    return write


def test_the_page_stands_alone_and_no_row_can_write_into_it(files: Callable[..., list[Path]]) -> None:
    hostile = row("<script>alert(1)</script> $x^2$ \x1b[31m", '"><img src=x onerror=alert(2)> \U0001f600 日本語')
    (path,) = files(train=[plain(n) for n in range(20)] + [hostile] * 3)
    page = render(check_files([path], [], QualitySection(min_score=0.8)))
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert page.count("<svg") == 3


def test_the_verb_tells_refuses_and_writes_the_page(files: Callable[..., list[Path]], tmp_path: Path) -> None:
    rows = [plain(n) for n in range(20)]
    train, test = files(train=[*rows, rows[0]], test=[rows[3], plain(90)])
    done = CliRunner().invoke(data_verb, ["check", str(train), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["rows"], told["kept"], told["duplicate_rows"], told["dropped"]) == (21, 20, 1, {"duplicates": 1})
    assert sum(told["histograms"]["score"]["counts"]) == 21
    page = tmp_path / "page.html"
    done = CliRunner().invoke(data_verb, ["check", str(train), "--against", str(test), "--html", str(page)])
    assert isinstance(done.exception, Refused)
    assert "leakage" in done.output
    assert page.is_file()
    preferences = [json.dumps({"prompt": text(n), "chosen": text(n + 50), "rejected": text(n + 99)}) for n in range(12)]
    (pairs,) = files(pairs=preferences)
    told = json.loads(CliRunner().invoke(data_verb, ["check", str(pairs), "--json"]).stdout)
    assert told["formats"] == {"preference": 12}


def test_the_page_never_takes_the_place_of_what_it_shows(files: Callable[..., list[Path]], tmp_path: Path) -> None:
    (train,) = files(train=[plain(n) for n in range(20)])
    before = train.read_bytes()
    link = tmp_path / "link.html"
    link.symlink_to(train)
    for page, why in ((train, "one of the files"), (link, "one of the files"), (tmp_path, "a folder")):
        done = CliRunner().invoke(data_verb, ["check", str(train), "--html", str(page)])
        assert isinstance(done.exception, InvalidInput)
        assert f"--html {page} is {why}; name a new file" in str(done.exception)
    assert train.read_bytes() == before


def test_a_run_drops_what_the_recipe_says_and_its_lineage_counts_it(
    tiny_recipe: Path, make_rows: Callable[[int, int], list[dict[str, str]]]
) -> None:
    folder = tiny_recipe.parent
    rows = make_rows(0, 40)
    lines = [json.dumps(one) for one in [*rows, rows[0], rows[1]]]
    (folder / "train.jsonl").write_text("\n".join([*lines, "not json", '{"instruction": "a", "output": " "}']) + "\n")
    with pytest.raises(InvalidInput) as caught:
        load_data(load_recipe(tiny_recipe))
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["43", "44"]
    given = tiny_recipe.read_text()
    quality = "quality: {format: drop, empty: drop, near_duplicates: off, near_leakage: off}, streaming: true"
    tiny_recipe.write_text(given.replace("data: {train: train.jsonl,", f"data: {{train: train.jsonl, {quality},"))
    found = load_data(load_recipe(tiny_recipe))
    assert isinstance(found.train, Chosen)
    assert [one.answer for one in found.train] == [one["output"] for one in rows]
    assert found.origin["dropped"] == {"format": 1, "empty": 1, "duplicates": 2}
    assert "dropped: 1 format, 1 empty, 2 duplicates" in found.said[0]
    assert (len(found.validation), len(found.sets["old"])) == (4, 12)
    json.dumps(found.origin)


def test_a_run_refuses_to_learn_what_it_is_measured_on(
    tiny_recipe: Path, make_rows: Callable[[int, int], list[dict[str, str]]]
) -> None:
    folder = tiny_recipe.parent
    shared = json.dumps(make_rows(60, 1)[0])
    train, validation = (folder / "train.jsonl").read_text(), (folder / "validation.jsonl").read_text()
    (folder / "train.jsonl").write_text(f"{train}{shared}\n")
    with pytest.raises(Refused, match=r"train.jsonl:41: is also in old \(.*test.jsonl:1\)"):
        load_data(load_recipe(tiny_recipe))
    (folder / "train.jsonl").write_text(train)
    (folder / "validation.jsonl").write_text(f"{validation}{shared}\n")
    with pytest.raises(Refused, match=r"validation: leakage.*\n.*validation.jsonl:5: is also in old"):
        load_data(load_recipe(tiny_recipe))


def test_a_mixture_is_stated_source_by_source_and_much_repetition_is_a_warning(
    tiny_recipe: Path, make_rows: Callable[[int, int], list[dict[str, str]]]
) -> None:
    (tiny_recipe.parent / "own.jsonl").write_text("".join(json.dumps(one) + "\n" for one in make_rows(120, 4)))
    sources = "[{path: train.jsonl, weight: 1}, {path: own.jsonl, weight: 1}]"
    tiny_recipe.write_text(tiny_recipe.read_text().replace("data: {train: train.jsonl,", f"data: {{train: {sources},"))
    found = load_data(load_recipe(tiny_recipe))
    assert len(found.train) == 44
    assert found.origin["sources"]["train"] == [
        {"source": "train.jsonl", "rows": 40, "taken": 22, "weight": 1.0},
        {"source": "own.jsonl", "rows": 4, "taken": 22, "weight": 1.0},
    ]
    assert "  own.jsonl: 22 of 4 rows by weight 1, each 5.50 times" in found.said
    assert any(line.startswith("warning: own.jsonl: each row is learned 5.5 times an epoch") for line in found.said)
    assert load_data(load_recipe(tiny_recipe)).train == found.train


def test_columns_hold_no_text_and_few_bytes_a_row() -> None:
    columns = look([plain(n) for n in range(300)], QualitySection(**OFF))
    arrays = [value for value in vars(columns).values() if isinstance(value, np.ndarray)]
    assert sum(one.nbytes for one in arrays) / len(columns) < 200
    assert isinstance(columns, Columns)
    assert all(one.dtype != object for one in arrays)
