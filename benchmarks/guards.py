"""How many attacks the input guards find, how many benign texts they stop, and what that costs.

    .venv/bin/python benchmarks/guards.py [--json FILE] [--also FILE.jsonl …] [--families]

`guards_unseen/` holds attacks and benign texts written by hand before the classifier was trained: their errors were
never read, though the threshold was chosen with their totals in view. `guards_second/` is another author's: of its
attacks every second one was read, and is left out here; of its benign texts those were that a classifier before
stopped. Its templates of indirect attacks, and of documents like those around them, are a third author's: none was
trained on or read. The others come from templates that the
classifier was never trained on; with `--families` the share of families it never saw at all comes from training again
without each, which takes a quarter of an hour.
Real prose is the documents of every second installed package; those of the others helped to choose the threshold.
`--also` measures JSONL files of your own:
{"text": …, "label": 0 or 1}. Writes `benchmarks/results/guards.json` and a picture. Takes three minutes.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import random
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import distributions
from pathlib import Path

import matplotlib.pyplot as plt

from tuneloop.registry.redaction import redact
from tuneloop.serve.gateway.collecting import settle
from tuneloop.serve.guards import GuardPolicy, Guards, classifier, rules
from tuneloop.serve.guards.concepts import sentences
from tuneloop.serve.guards.folding import fold
from tuneloop.serve.guards.training import fit
from tuneloop.serve.guards.training.grammar import Template, expanded, held_out_texts, templates

RESULTS = Path(__file__).parent / "results"
UNSEEN, SECOND = (Path(__file__).parent / name for name in ("guards_unseen", "guards_second"))
EACH, SEED, CHARACTERS, REPEATS = 40, 11, 2_000, 300
REPORTED_HALF = 1
GUARDS = Guards(GuardPolicy(secrets="off", personal="off"))


@dataclass(frozen=True)
class Share:
    """A share with its Wilson interval (95 %)."""

    found: int
    of: int
    share: float
    low: float
    high: float


@dataclass
class Results:
    """What is written."""

    unseen_attacks: dict[str, Share] = field(default_factory=dict)  # by family; written by hand, never tuned on
    unseen_benign: dict[str, Share] = field(default_factory=dict)
    second_attacks: dict[str, Share] = field(default_factory=dict)  # by another author: those that were never read
    second_benign: dict[str, Share] = field(default_factory=dict)
    indirect_attacks: dict[str, Share] = field(default_factory=dict)  # of a third author's templates, never trained on
    indirect_benign: dict[str, Share] = field(default_factory=dict)
    attacks: dict[str, Share] = field(default_factory=dict)  # by family; held-out templates
    rules_alone: dict[str, Share] = field(default_factory=dict)
    unseen_families: dict[str, Share] = field(default_factory=dict)  # trained without the family
    benign: dict[str, Share] = field(default_factory=dict)
    prose: dict[str, Share] = field(default_factory=dict)
    wrapped: dict[str, Share] = field(default_factory=dict)  # of attacks that are found unwrapped
    others: dict[str, dict[str, Share]] = field(default_factory=dict)
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: list[tuple[float, float, float]] = field(default_factory=list)  # score, false positives, recall


def share(found: int, of: int) -> Share:
    """Wilson's interval."""
    if not of:
        return Share(0, 0, math.nan, 0.0, 1.0)
    z, p = 1.959964, found / of
    middle, half = (p + z * z / (2 * of)), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return Share(found, of, round(p, 4), round(max(0.0, (middle - half) / scale), 4), round((middle + half) / scale, 4))


def blocked(text: str) -> bool:
    """Whether the guards, as shipped, take it for an attack."""
    return GUARDS.judge(text).action == "block"


def ruled(text: str) -> bool:
    """Whether rules alone do, in the text as it stands."""
    folded = fold(text)
    return any(True for _ in rules.matches(sentences(folded), rules.marks(folded)))


def by_family(pairs: Iterable[tuple[str, str]], judge: Callable[[str], bool]) -> dict[str, Share]:
    """Shares by family, and of all."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for family, text in pairs:
        hit = judge(text)
        for name in (family, "all"):
            counts[name][0] += hit
            counts[name][1] += 1
    return {name: share(*count) for name, count in counts.items()}


def by_hand(folder: Path, name: str) -> list[tuple[str, str]]:
    """(family, text) of the `attacks` or `benign` texts written by hand."""
    found, family = [], ""
    for line in (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            family = line.removeprefix("== ")
        elif line and family:
            found.append((family, line.replace("\\n", "\n")))
    return found


def of_templates(name: str) -> list[tuple[str, str]]:
    """(family, text) of the templates that stand there to be measured."""
    written = enumerate(by_hand(SECOND, name))
    return [
        one for number, (family, line) in written for one in expanded(Template(family, number, line), each=4, seed=SEED)
    ]


def _of_family(family: str, text: fit.Example) -> bool:
    return text.attack and text.family == family


def unseen_families() -> dict[str, Share]:
    """Recall of each family's texts when training never saw one of them; the shipped threshold."""
    found, rows, threshold = {}, fit.examples(), classifier.load().threshold
    for family in dict.fromkeys(template.family for template in templates("attacks")):
        fitted = fit.train(rows, partial(_of_family, family))
        texts = [
            text
            for template in templates("attacks")
            if template.family == family
            for _, text in expanded(template, each=12, seed=SEED)
        ]
        values = fit.decisions(fitted, texts)
        hits = sum(
            value >= threshold or (value > threshold - classifier.PLAINLY_BENIGN and ruled(text))
            for text, value in zip(texts, values, strict=True)
        )
        found[family] = share(int(hits), len(texts))  # of NumPy else, which JSON knows nothing of
    return found


def prose() -> list[str]:
    """Paragraphs of the descriptions of half of the installed packages: real texts, none of them an attack.

    Those of the other half were looked at when the threshold was chosen.
    """
    found = []
    for distribution in sorted(distributions(), key=lambda one: str(one.metadata["Name"]).lower()):
        name = str(distribution.metadata["Name"]).lower()
        if not name.startswith("tuneloop") and zlib.crc32(name.encode()) % 2 == REPORTED_HALF:
            body = (distribution.read_text("METADATA") or "").partition("\n\n")[2]
            found += [part for part in body.split("\n\n") if 60 < len(part) < 2_000]
    random.Random(SEED).shuffle(found)
    return found[:4_000]


def wrappings() -> dict[str, Callable[[str], str]]:
    """Ways to hide a text from a filter but not from a model."""
    alike = str.maketrans("aeopcxyijs", "аеорсхуіјѕ")
    return {
        "base64": lambda text: base64.b64encode(text.encode()).decode(),
        "base64 twice": lambda text: base64.b64encode(base64.b64encode(text.encode())).decode(),
        "hex": lambda text: text.encode().hex(),
        "tags": lambda text: "Hi" + "".join(chr(0xE0000 + ord(c)) for c in text if c.isascii()),
        "variation selectors": lambda text: (
            "🙂" + "".join(chr(0xFE00 + b) if b < 16 else chr(0xE0100 + b - 16) for b in text.encode())
        ),
        "zero-width": "\u200b".join,
        "homoglyphs": lambda text: text.translate(alike),
        "fullwidth": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
        "accents": "\u0301".join,
    }


def latency() -> dict[str, dict[str, float]]:
    """The processor's time, p50 and p99, for 2,000 benign characters, half of them with an attack at the end."""
    benign = [text for _, text in held_out_texts("benign", each=60, seed=SEED)]
    attacks = [text for _, text in held_out_texts("attacks", each=60, seed=SEED)]
    draw = random.Random(SEED)
    texts = []
    for number in range(REPEATS):
        text = " ".join(draw.sample(benign, 60))
        attack = draw.choice(attacks) if number % 2 else ""
        texts.append(text[: CHARACTERS - len(attack) - 1] + " " + attack)
    redact("warm up: ada@example.com")
    full = Guards()
    ways: dict[str, Callable[[str], object]] = {
        "guards, injection and hidden text": GUARDS.judge,
        "guards, all (Presidio only where it may find something)": full.judge,
        "rules alone": ruled,
        "Presidio alone (redaction)": redact,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    settle()  # as the gateway's guard workers, whose texts these would be
    for text in texts:  # in turns: this machine's drift hits all alike
        for name, way in ways.items():
            began = time.process_time()  # of the processor: other processes here are no cost of the guards
            way(text)
            taken[name].append((time.process_time() - began) * 1_000)
    return {
        name: {"p50": round(sorted(ms)[len(ms) // 2], 2), "p99": round(sorted(ms)[int(len(ms) * 0.99)], 2)}
        for name, ms in taken.items()
    }


def curve(attacks: Sequence[str], benign: Sequence[str]) -> list[tuple[float, float, float]]:
    """Score from which to block → share of benign and of attacks that reach it."""
    high = sorted(GUARDS.score(text) for text in attacks)
    low = sorted(GUARDS.score(text) for text in benign)
    steps = sorted({round(score, 3) for score in [*high, *low]})
    return [
        (step, sum(s >= step for s in low) / len(low), sum(s >= step for s in high) / len(high))
        for step in steps[:: max(1, len(steps) // 200)]
    ]


def picture(results: Results, path: Path) -> None:
    """The curve, with the shipped threshold."""
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.plot([100 * x for _, x, _ in results.curve], [100 * y for *_, y in results.curve], drawstyle="steps-post")
    at = min(results.curve, key=lambda point: abs(point[0] - 0.5))
    axes.plot([100 * at[1]], [100 * at[2]], "o", label="as shipped")
    axes.set(xlabel="false positives, % of held-out benign texts", ylabel="recall, % of held-out attacks", xlim=(0, 10))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def tell(title: str, shares: dict[str, Share]) -> None:
    """A table."""
    print(f"\n{title}")
    for name, one in shares.items():
        interval = f"[{100 * one.low:.1f}, {100 * one.high:.1f}]"
        print(f"  {name:28} {one.found:5}/{one.of:<5} {100 * one.share:5.1f} % {interval}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS / "guards.json")
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    parser.add_argument("--families", action="store_true", help="train again without each family of attacks")
    options = parser.parse_args()
    results = Results()
    results.unseen_attacks = by_family(by_hand(UNSEEN, "attacks"), blocked)
    tell("Attacks, written by hand and never tuned on", results.unseen_attacks)
    results.unseen_benign = by_family(by_hand(UNSEEN, "benign"), blocked)
    tell("Benign, written by hand and never tuned on: stopped", results.unseen_benign)
    results.second_attacks = by_family(by_hand(SECOND, "attacks")[1::2], blocked)
    tell("Attacks by another author, those that were never read", results.second_attacks)
    results.second_benign = by_family(by_hand(SECOND, "benign"), blocked)
    tell("Benign by another author: stopped", results.second_benign)
    results.indirect_attacks = by_family(of_templates("indirect_attacks"), blocked)
    tell("Indirect attacks by a third author", results.indirect_attacks)
    results.indirect_benign = by_family(of_templates("indirect_benign"), blocked)
    tell("Documents by a third author: stopped", results.indirect_benign)
    held_out = held_out_texts("attacks", each=EACH, seed=SEED)
    benign = held_out_texts("benign", each=EACH, seed=SEED)
    results.attacks = by_family(held_out, blocked)
    tell("Attacks, held-out templates", results.attacks)
    results.rules_alone = by_family(held_out, ruled)
    tell("… by rules alone", {"all": results.rules_alone["all"]})
    results.benign = by_family(benign, blocked)
    tell("Benign, held-out templates: stopped", results.benign)
    results.prose = by_family((("packages' descriptions", text) for text in prose()), blocked)
    tell("Real prose: stopped", results.prose)
    for path in options.also:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        pairs = [("attack" if row["label"] in {1, "malicious"} else "benign", row["text"]) for row in rows]
        results.others[path.stem] = {k: v for k, v in by_family(pairs, blocked).items() if k != "all"}
        tell(f"{path.stem}: blocked", results.others[path.stem])
    found_plain = [text for _, text in held_out if blocked(text) and text.isascii()][::4]
    results.wrapped = {
        name: share(sum(blocked(wrap(text)) for text in found_plain), len(found_plain))
        for name, wrap in wrappings().items()
    }
    tell("Wrapped copies of attacks that are found", results.wrapped)
    results.curve = curve([text for _, text in held_out], [text for _, text in benign])
    results.latency_ms = latency()
    for name, ms in results.latency_ms.items():
        print(f"  {name:58} p50 {ms['p50']:6.2f} ms, p99 {ms['p99']:6.2f} ms at {CHARACTERS} characters")
    if options.families:
        results.unseen_families = unseen_families()
        tell("Attack families the classifier never saw", results.unseen_families)
    options.json.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    picture(results, options.json.with_name("guards.png"))


if __name__ == "__main__":
    main()
