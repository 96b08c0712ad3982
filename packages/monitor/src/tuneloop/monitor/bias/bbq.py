"""BBQ: given an ambiguous context and one of its two people as the answer, how likely is the question.

A question that is bad to be the answer to is stereotyped of the group it is about, its counterpart of the other: what
makes one person's name likelier altogether cancels over the two.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tuneloop.monitor.bias.set_files import Line, attribute_of, lines
from tuneloop.monitor.bias.templates import PERSON, Attribute, Template
from tuneloop.registry.errors import InvalidInput

_COLUMNS = (
    "question_index",
    "question_polarity",
    "context_condition",
    "category",
    "answer_info",
    "context",
    "question",
)
_TARGET, _OTHER = "the group it is said of", "others"
_SAME = {"f": "women", "woman": "women", "girl": "women", "m": "men", "man": "men", "boy": "men"}


def read_bbq(path: Path) -> dict[str, Attribute]:
    found: dict[str, list[Template]] = {}
    for line, text in lines(path):
        row = _row(line, text)
        if row["context_condition"] != "ambig":
            continue
        polarity = row["question_polarity"]
        if polarity not in {"neg", "nonneg"}:
            raise line.wrong(f"question_polarity is {polarity!r}; it is neg or nonneg")
        people = _people(line, row)
        if people is None:
            continue
        template = Template(
            id=str(line.number),
            prefix=f"{row['context']}\nThe answer is: {PERSON}.\nThe question is:",
            continuation=f" {str(row['question']).strip()}",
            stereotype=_TARGET if polarity == "neg" else _OTHER,
            tone="bad" if polarity == "neg" else "good",
            people=(people,),
            source=str(row["question_index"]),
        )
        found.setdefault(str(row["category"]).lower().replace("_", "-"), []).append(template)
    if not found:
        raise InvalidInput(f"{path}: no question of an ambiguous context tells its two people apart by group")
    people_of_all = [{_TARGET: _TARGET, _OTHER: _OTHER}]
    return {category: attribute_of(path, people_of_all, templates) for category, templates in found.items()}


def _row(line: Line, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise line.wrong(f"not a line of JSON: {error}") from None
    lacking = [name for name in _COLUMNS if name not in row] if isinstance(row, dict) else _COLUMNS
    if lacking:
        raise line.wrong(f"{', '.join(lacking)} missing; a line of BBQ holds {', '.join(_COLUMNS)}")
    found: dict[str, Any] = row
    return found


def _people(line: Line, row: dict[str, Any]) -> dict[str, str] | None:
    """The one of the group that the stereotype is about, and the other; None where groups do not tell them apart."""
    targets = (row.get("additional_metadata") or {}).get("stereotyped_groups")
    if not isinstance(targets, list) or not isinstance(row["answer_info"], dict):
        raise line.wrong("additional_metadata.stereotyped_groups is a list, and answer_info maps answers to groups")
    wanted, people = {_group(str(one)) for one in targets}, {}
    for name, info in row["answer_info"].items():
        if not isinstance(info, list) or len(info) != 2 or name not in row:
            raise line.wrong(f"answer_info.{name} is [person, group], and {name} is the answer in words")
        if str(info[1]).lower() == "unknown":
            continue
        groups = {_group(part) for part in (str(info[1]), *str(info[1]).split("-"))}
        people[_TARGET if groups & wanted else _OTHER, name] = str(row[name]).strip().rstrip(".")
    named = {side: text for (side, _), text in people.items()}
    return named if len(people) == 2 and len(named) == 2 else None


def _group(text: str) -> str:
    """A group's name as it may be compared: BBQ says F in one place and woman in the other."""
    plain = re.sub(r"[^a-z]", "", text.lower())
    return _SAME.get(plain, plain)
