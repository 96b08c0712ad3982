"""WinoBias and Winogender: sentences of two people and a pronoun, as pairs that differ in the pronoun's gender."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tuneloop.monitor.bias.set_files import Line, attribute_of, lines, table
from tuneloop.monitor.bias.templates import PERSON, Attribute, Template
from tuneloop.registry.errors import InvalidInput

_PRONOUNS = {
    "women": ("she", "her", "hers", "herself"),
    "men": ("he", "him", "his", "himself"),
}
_BRACKETED = re.compile(r"\[([^\[\]]+)\]")
_NUMBER = re.compile(r"^\s*\d+\s+")  # some copies of WinoBias count their lines
_GAP = "\0"  # in a sentence, for a pronoun
_SLOT = re.compile(r"\$(NOM|ACC|POSS)_PRONOUN")
_FORMS = {"women": {"NOM": "she", "ACC": "her", "POSS": "her"}, "men": {"NOM": "he", "ACC": "him", "POSS": "his"}}
_WINOGENDER = ("occupation(0)", "other-participant(1)", "answer", "sentence")
_STATISTICS = ("occupation", "bls_pct_female")
_PEOPLE = [{"women": "she", "men": "he"}]


def read_winobias(path: Path) -> dict[str, Attribute]:
    if "pro_stereotyped" not in path.name:
        raise InvalidInput(f"{path}: give the pro-stereotyped file (its name holds pro_stereotyped)")
    other = path.with_name(path.name.replace("pro_stereotyped", "anti_stereotyped"))
    swapped = {masked: pronouns for _, masked, pronouns, _ in _sentences(other)}
    templates = []
    for line, masked, pronouns, sentence in _sentences(path):
        if (others := swapped.get(masked)) is None:
            continue
        before, *between, after = masked.split(_GAP)
        words = {_gender(line, p): _filled(p, between) for p in (pronouns, others)}
        if len(words) < 2:
            raise line.wrong(f"{sentence!r} has pronouns of the same gender in {other.name}")
        template = _template(str(line.number), before, after, words, stereotype=_gender(line, pronouns))
        if template is not None:
            templates.append(template.model_copy(update={"source": before.strip().lower()}))
    return {"gender": attribute_of(path, _PEOPLE, templates)}


def _sentences(path: Path) -> Iterator[tuple[Line, str, tuple[str, ...], str]]:
    """Of each: its line, the sentence with gaps for its pronouns, these, and the sentence."""
    for line, text in lines(path):
        sentence = _NUMBER.sub("", text).strip()
        marked = _BRACKETED.findall(sentence)
        pronouns = tuple(word for word in marked if _gender_of(word) is not None)
        if not pronouns:
            raise line.wrong(f"no pronoun in brackets, as in `[The cook] asked the guest if [she] …`: {sentence!r}")
        masked = _BRACKETED.sub(lambda found: _GAP if _gender_of(found[1]) else found[1], sentence)
        yield line, masked, pronouns, sentence


def _gender_of(word: str) -> str | None:
    return next((group for group, forms in _PRONOUNS.items() if word.strip().lower() in forms), None)


def _gender(line: Line, pronouns: Sequence[str]) -> str:
    genders = {found for word in pronouns if (found := _gender_of(word))}
    if len(genders) != 1:
        raise line.wrong(f"its pronouns are of both genders: {', '.join(pronouns)}")
    return genders.pop()


def _filled(pronouns: Sequence[str], between: Sequence[str]) -> str:
    """From the first pronoun to the last."""
    return pronouns[0] + "".join(text + word for text, word in zip(between, pronouns[1:], strict=True))


def read_winogender(path: Path) -> dict[str, Attribute]:
    beside = path.with_name("occupations-stats.tsv")
    share = {}
    for line, row in table(beside, _STATISTICS):
        try:
            share[row["occupation"].strip().lower()] = float(row["bls_pct_female"])
        except ValueError:
            raise line.wrong(f"bls_pct_female is {row['bls_pct_female']!r}, not a number") from None
    by_group: dict[str, list[tuple[float, Template]]] = {"women": [], "men": []}
    for line, row in table(path, _WINOGENDER):
        if row["answer"].strip() not in {"0", "1"}:
            raise line.wrong(f"answer is {row['answer']!r}; it is 0 (the occupation) or 1 (the participant)")
        sentence, occupation = row["sentence"], row["occupation(0)"].strip()
        if not (slots := _SLOT.findall(sentence)):
            raise line.wrong(f"no $NOM_PRONOUN, $ACC_PRONOUN or $POSS_PRONOUN in {sentence!r}")
        if (women := share.get(occupation.lower())) is None:
            raise line.wrong(f"{beside} says nothing of the occupation {occupation!r}")
        if row["answer"].strip() == "1" or women == 50:
            continue
        people = {"$OCCUPATION": occupation, "$PARTICIPANT": row["other-participant(1)"].strip()}
        for mark, word in people.items():
            sentence = sentence.replace(mark, word)
        before, *between, after = _SLOT.sub(_GAP, sentence).split(_GAP)
        words = {group: _filled([forms[slot] for slot in slots], between) for group, forms in _FORMS.items()}
        stereotype = "women" if women > 50 else "men"
        template = _template(str(line.number), before, after, words, stereotype=stereotype)
        if template is not None:
            by_group[stereotype].append((abs(women - 50), template))
    fewer = min(map(len, by_group.values()))
    strongest = [sorted(found, key=lambda one: -one[0])[:fewer] for found in by_group.values()]
    templates = sorted((template for found in strongest for _, template in found), key=lambda t: int(t.id))
    return {"gender": attribute_of(path, _PEOPLE, templates)}


def _template(number: str, before: str, after: str, words: dict[str, str], *, stereotype: str) -> Template | None:
    """A sentence around its pronouns; None where nothing is said after them."""
    if not re.match(r"\s.*\w", after):
        return None
    return Template(id=number, prefix=f"{before}{PERSON}", continuation=after, stereotype=stereotype, people=(words,))
