"""What a text is like: its language, whether it is offensive, whether it names somebody, whether it is clean. Offline.

Language: py3langid, a naive Bayes classifier of 97 languages (BSD); below a probability of one half it is `und`, as
short texts, code and formulas mostly are. Offensive language: alt-profanity-check, a linear classifier of English words
trained on 200,000 labelled texts (MIT). It knows no context: it is wrong about some harmless words and blind to
others, and to other languages; it is there to point at rows for a person to look at. Personal data: the registry's
redaction; its recognisers cost 6 ms a text, so texts without a digit run, an @ or a long code are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.registry.redaction import redact

UNDETERMINED = "und"
BOTH = " and "  # between the codes of a question and of its answer
_SURE = 0.5
_READ_CHARACTERS = 160  # enough to tell a language by; a character costs a microsecond
_ENOUGH_CHARACTERS = 40  # to judge question or answer apart from the other
_MAY_NAME_SOMEBODY = re.compile(
    r"@|\d(?:\W{0,3}\d){5}|[0-9a-fA-F]{0,4}:[0-9a-fA-F]{0,4}:|[A-Za-z0-9]{25}|[A-Z]{2}\d{2}"
)
# Control and private-use characters, the replacement character, and UTF-8 that was read as Latin-1 or CP1252.
_DIRT = re.compile(
    "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]|[\u00c3\u00c2][\x80-\xbf]|\u00e2\u20ac[\u0080-\uffff]?"
)
_DIRT_WEIGHT = 50  # one bad character in fifty makes a text worthless


def language(prompt: str, answer: str) -> str:
    """ISO 639-1 code, or `und`; `en and de` of a question in one language and an answer in another.

    A long question shall not hide its answer, so each is read by half of what is read, the question by its end, where
    it stands after any instruction. One that is short by itself is read together with the other.
    """
    if len(answer) < _ENOUGH_CHARACTERS:
        return _language(f"{prompt}\n{answer}"[-_READ_CHARACTERS:])
    if len(prompt) < _ENOUGH_CHARACTERS:
        return _language(f"{prompt}\n{answer}"[:_READ_CHARACTERS])
    half = _READ_CHARACTERS // 2
    asked, said = _language(prompt[-half:]), _language(answer[:half])
    codes = [code for code in (asked, said) if code != UNDETERMINED]
    return BOTH.join(dict.fromkeys(codes)) or UNDETERMINED


def _language(text: str) -> str:
    found, probability = _identifier().classify(text)
    return str(found) if probability >= _SURE else UNDETERMINED


def toxicity(texts: Sequence[str]) -> NDArray[np.float32]:
    """The probability that each text is offensive; about 25 µs each, after 3 s for the first."""
    from profanity_check import predict_prob  # noqa: PLC0415 (scikit-learn and its model: seconds)

    return np.asarray(predict_prob(list(texts)), np.float32) if texts else np.empty(0, np.float32)


def personal_data(text: str) -> dict[str, int]:
    """Kinds of personal data in a text, and how many of each."""
    return redact(text).found if _MAY_NAME_SOMEBODY.search(text) else {}


def cleanliness(text: str) -> float:
    """1 without broken characters, 0 with one in fifty or more."""
    bad = sum(len(found) for found in _DIRT.findall(text))
    return max(0.0, 1.0 - _DIRT_WEIGHT * bad / max(1, len(text)))


def variety(words: Sequence[str]) -> float:
    """1 unless most runs of three words are repeats of others."""
    runs = len(words) - 2
    if runs < 1:
        return 1.0
    distinct = len(set(zip(words, words[1:], words[2:], strict=False)))
    return min(1.0, 2 * distinct / runs)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415 (its model takes a second)

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
