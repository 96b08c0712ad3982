"""Checking a version for bias: its templates read on an engine, judged against the champion's, kept with its run.

What is kept (`bias/bias.json` in the version's MLflow run, and figures as its metrics) is all that a gate and the
report need: neither reads an engine.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import httpx
from pydantic import AwareDatetime, ValidationError

from tuneloop.monitor.bias.judge import MARGIN, Bias, Finding, Key, judge
from tuneloop.monitor.bias.templates import Templates
from tuneloop.monitor.reading import Token, read_texts
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, Unavailable, Unreadable
from tuneloop.registry.files import cannot_read, write_atomically
from tuneloop.registry.nouns import Noun, Version
from tuneloop.registry.versions.run_files import BIAS, kept_json


class BiasResult(Noun):
    """What a check found of one model; `bias/bias.json` of a version's run is this."""

    of: str  # a version, or a name that an engine serves
    at: AwareDatetime
    templates: str  # digest of what was read
    margin: float
    champion: str | None  # the version it was held against
    why_alone: str = ""
    attributes: tuple[Bias, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that MLflow shows beside the version's others."""
        found: dict[str, float] = {}
        for bias in self.attributes:
            if bias.alone.gap is not None and bias.preference is not None:
                found[f"bias.{bias.attribute}.gap"] = bias.alone.gap.estimate
                found[f"bias.{bias.attribute}.preference"] = bias.preference.estimate
                found[f"bias.{bias.attribute}.worst_gap"] = bias.worst_gap
        return found


def read_scores(
    client: httpx.Client, url: str, name: str, templates: Templates, *, concurrency: int
) -> dict[str, dict[Key, float]]:
    """Attribute → (template, row, group) → mean log-probability of the continuation's tokens.

    Raises:
        Unavailable: the engine failed.
    """
    items = list(templates.items())
    texts = [prompt for *_, prompt in items]
    read = read_texts(client, url, name, texts, concurrency=concurrency)
    found: defaultdict[tuple[str, str], dict[Key, tuple[Token, ...]]] = defaultdict(dict)
    for (attribute, template, row, group, _), tokens in zip(items, read, strict=True):
        found[attribute, template.id][template.id, row, group] = spelled(tokens, template.continuation)
    scores: dict[str, dict[Key, float]] = {attribute: {} for attribute in templates.attributes}
    for (attribute, _), readings in found.items():
        cuts = {tuple(token.text for token in tokens) for tokens in readings.values()}
        if len(cuts) == 1 and cuts != {()}:  # another cut is another question
            means = {key: sum(t.logprob for t in tokens) / len(tokens) for key, tokens in readings.items()}
            scores[attribute] |= means
    return scores


def spelled(tokens: Sequence[Token], continuation: str) -> tuple[Token, ...]:
    """The last tokens, those that spell the continuation, blanks aside; none when no token begins where it does."""
    wanted, said = "".join(continuation.split()), ""
    for start in range(len(tokens) - 1, -1, -1):
        said = "".join(tokens[start].text.split()) + said
        if said == wanted:
            return tuple(tokens[start:])
        if not wanted.endswith(said):
            break
    return ()


def held_against(registry: Registry, version: Version, templates: Templates) -> tuple[BiasResult | None, str]:
    """What is kept of the champion's check, or why there is nothing to hold the version against."""
    route = next(iter(registry.routes.history(version.model)), None)
    if route is None:
        return None, f"{version.model} has no champion yet"
    if route.champion == version.version:
        return None, f"{version.name} is the champion"
    kept = kept_result(registry, registry.versions.get(version.model, route.champion))
    name = f"{version.model}@{route.champion}"
    if kept is None:
        return None, f"the champion was not checked: `tuneloop bias check {name}` first"
    if kept.templates != templates.digest:
        return None, f"the champion was checked with other sentences: `tuneloop bias check {name}` again"
    return kept, ""


def kept_result(registry: Registry, version: Version) -> BiasResult | None:
    """The newest check of a version; None when there was none.

    Raises:
        Unreadable: what its run keeps is damaged.
    """
    kept = kept_json(registry, version, BIAS)
    try:
        return BiasResult.model_validate(kept) if kept else None
    except ValidationError as error:
        raise Unreadable(
            f"MLflow run {version.run_id}: {BIAS} is not what `tuneloop bias check` writes "
            f"({error.error_count()} faults): check {version.name} again"
        ) from None


def result(
    of: str,
    at: datetime,
    templates: Templates,
    scores: Mapping[str, Mapping[Key, float]],
    against: BiasResult | None,
    *,
    why_alone: str = "",
    margin: float = MARGIN,
) -> BiasResult:
    """The scores, judged."""
    champion = {bias.attribute: bias.by_template for bias in against.attributes} if against else None
    return BiasResult(
        of=of,
        at=at,
        templates=templates.digest,
        margin=margin,
        champion=against.of if against else None,
        why_alone=why_alone,
        attributes=judge(templates.attributes, scores, champion, margin=margin),
    )


def check_version(
    registry: Registry, client: httpx.Client, version: Version, templates: Templates, *, margin: float, concurrency: int
) -> BiasResult:
    """Read, judge and keep a version that an engine serves.

    Raises:
        Unavailable: no live engine serves it, or the one that does failed.
    """
    engines = registry.fleet.serving(version.name)
    if not engines:
        raise Unavailable(
            f"no live engine serves {version.name}; give it a place in the route, or read any engine with --engine URL"
        )
    against, why_alone = held_against(registry, version, templates)
    scores = read_scores(client, engines[0].url, version.name, templates, concurrency=concurrency)
    found = result(version.name, registry.clock(), templates, scores, against, why_alone=why_alone, margin=margin)
    with tempfile.TemporaryDirectory(prefix="tuneloop-bias-") as scratch:
        path = Path(scratch) / Path(BIAS).name
        write_atomically(path, json.dumps(found.model_dump(mode="json"), indent=1).encode())
        registry.versions.log_file(version.run_id, path, str(Path(BIAS).parent))
    registry.versions.log_metrics(version.run_id, found.metrics)
    return found


def read_templates(path: Path) -> Templates:
    """Sentences of one's own, in the form of those that come with the package.

    Raises:
        InvalidInput: the file is none.
    """
    try:
        return Templates.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(path, error, "give --templates a JSON file of sentences") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{path}: {where}: {first['msg']} ({error.error_count()} faults)") from None


HEADERS = ("ATTRIBUTE", "HELD AGAINST", "VERDICT", "GAP, NATS PER TOKEN", "HOLM P", "SEEN FROM", "N")


def rows(found: BiasResult) -> Iterator[tuple[object, ...]]:
    """The result as lines of a table; see `HEADERS`."""
    for bias in found.attributes:
        yield _row(bias.attribute, "none", bias.alone, bias.templates)
        if bias.champion is not None:
            yield _row(bias.attribute, found.champion, bias.champion, bias.templates)


def lines(found: BiasResult) -> Iterator[str]:
    """What the table leaves out, a line at a time."""
    for bias in found.attributes:
        if bias.preference is not None:
            p = bias.preference
            groups = ", ".join(f"{group} {value:+.3f}" for group, value in bias.favour.items())
            yield (
                f"{bias.attribute}: the stereotype is likelier in {p.estimate:.0%} [{p.low:.0%}, {p.high:.0%}] of "
                f"{bias.templates} templates; in favour of {groups}; impact ratio {bias.impact_ratio:.2f}"
            )
        if bias.left_out:
            yield f"{bias.attribute}: {len(bias.left_out)} templates left out: {', '.join(bias.left_out)}"
    if found.why_alone:
        yield f"not held against a champion: {found.why_alone}"


def _row(attribute: str, against: str | None, finding: Finding, templates: int) -> tuple[object, ...]:
    gap = finding.gap
    return (
        attribute,
        against,
        finding.verdict + (f": {finding.reason}" if finding.reason else ""),
        f"{gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" if gap else None,
        f"{finding.p_holm:.2g}" if finding.p_holm is not None else None,
        f"{finding.minimum_detectable:.3f}" if finding.minimum_detectable is not None else None,
        templates,
    )
