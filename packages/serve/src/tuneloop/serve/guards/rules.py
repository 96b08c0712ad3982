"""Rules for precision: patterns over a sentence's concepts, and over the few literal marks of chat templates.

A rule that matches is meant to be right alone; everything less certain is left to the classifier, which sees `marks` as
features. All quantifiers are bounded and patterns over concepts run on one character a word, so that time stays
linear. A sentence that talks about attacks (concept `V`) or about somebody's own text (`B`), or that asks, is not
judged by rules. Quotation marks alone excuse nothing: anybody can put an order between them. Of a sentence that quotes,
only the words outside the quotes say whether it reports what it quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from tuneloop.serve.guards import glance
from tuneloop.serve.guards.concepts import Sentence

RULE_SCORE = 0.97


@dataclass(frozen=True)
class Hit:
    """A rule that matched, and where in the reading."""

    rule: str
    start: int
    end: int
    near: Sentence | None = None  # the words around what a rule matched; None of a mark


# Letters are concepts of lexicon.txt; `_` is a function word, `.` any other word.
_CONCEPTS: tuple[tuple[str, str, re.Pattern[str]], ...] = (  # without the concept in the middle there is no match
    (
        "override",
        "O",
        re.compile(r"O[_AQ]{0,4}[PS][_PSYAM]{0,3}[IL]|O[_A]{0,3}Y[_PSAM]{0,3}[IL]|OA_{0,2}I(?![._][.K])"),
    ),
    ("override", "O", re.compile(r"O[_A]{0,3}[IL][_Y.]{0,4}P|[PSY][_PSYAM]{0,2}[IL][_YG]{0,2}O")),
    ("override", "I", re.compile(r"A[_PSY]{0,3}I[_Y]{0,3}[PO].{0,4}[OG]C?")),
    ("override", "O", re.compile(r"O[_]{0,2}A[_.Y]{0,3}P.{0,8}[WCRNYM]")),
    ("persona", "U", re.compile(r"(?:N|YW|WY)[_.YWM]{0,5}U|Y[_.]{0,3}M[_.]{0,3}U")),
    ("unrestricted", "U", re.compile(r"[CWM][_.YAM]{0,4}U[_.]{0,3}[MCA]|Y[_.W]{0,4}U[_.]{0,3}W")),
    ("reveal", "R", re.compile(r"R[_YAPR]{0,5}S[_P]{0,2}I|R[_A]{0,3}Y[_]{0,1}P[_S]{0,2}I|R[_A]{0,3}[IJ]_?YP")),
    ("reveal", "R", re.compile(r"R[_RA]{0,4}Y[_]{0,1}S[_]{0,1}[IJ]")),
    ("exfiltrate", "T", re.compile(r"[EO].{0,6}[DI].{0,10}T|T.{0,6}E.{0,6}D")),
    ("no-refusal", "X", re.compile(r"G[_YWA]{0,3}X.{0,6}[CWAIL]|[CA].{0,5}G[_]{0,2}X")),
)
_NEEDED = re.compile("[OIURTX]")
_TALK = re.compile(r"[VB]")
_AROUND = 8  # words on either side of a match that say whether a rule counts
# With one of these outside the quotes a sentence reports, explains or tests what it quotes.
_REPORTING = re.compile(
    r"\b(?:report(?:s|ed)?|explain(?:s|ed)?|describe[sd]?|discuss(?:es)?|blogs?|articles?|papers?|study|talk|lecture|slides?"
    r"|books?|authors?|researchers|examples?|tests?|tested|testers|filters?|detector|blocked|flagged|logs?|logged|strings?"
    r"|sentences|prompts|tricks?|wrote|writes|typed|types|quote[sd]|titled|called|attack(?:s|ers?)?|why|whether"
    r"|classify|label|annotate|proofread|translate|artikel|beispiel|explique|ejemplo|exemple)\b"
)
# … but not where something outside orders that it be done.
_DOING = re.compile(
    r"\b(?:do|execute|obey|follow|perform|run|carry|comply|apply|enact|instead|now|must|ignore|disregard|forget|override"
    r"|immediately|proceed|tu|fais|haz|faites|hagas|mach|befolge)\b"
)
_ASKING = frozenset(
    ["is", "are", "was", "how", "why", "what", "which", "who", "when", "where", "does", "did", "explain", "describe"]
)

_CALLED = ("assistant", "chatbot", "agent", "copilot")
_NAMES = r"(?:ai|llms?|language models?|ai[ -]\w{1,12}|assistants?|chatbots?|agents?|copilot)"
_RULE = r"(?:---|===|###|\*\*\*|\[|\])"  # spelt out: `re` leaps to a character that one can begin with
# Without one of the literals in the middle there is no match.
_MARKS: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    (
        "chat-token",
        ("<|",),
        re.compile(r"<\|(?:im_start|im_end|system|user|assistant|endoftext|start_header_id|eot_id)\|>"),
    ),
    (
        "chat-token",
        ("inst]", "<<", "_turn>", "<|"),
        re.compile(r"\[/?inst\]|<</?sys>>|<start_of_turn>|<end_of_turn>|<\|begin_of_text\|>"),
    ),
    (
        "fake-turn",
        (":",),
        re.compile(r"(?m)^[ \t>#*\-\[<(]{0,8}(?:system|assistant|developer)[ \w]{0,24}[\])>*]{0,3}:"),
    ),
    (
        "fake-turn",
        ("<",),
        re.compile(r"</?(?:system|instructions?|assistant|prompt|context|user_?input|admin)>"),
    ),
    ("fake-turn", ("##",), re.compile(r"(?m)^#{2,4} ?(?:system|new instructions?|instructions?|admin|override)\b")),
    (
        "fake-end",
        ("---", "===", "###", "***", "[", "]"),
        re.compile(rf"{_RULE} ?(?:end|begin|start|new) [\w ]{{2,30}}{_RULE}"),
    ),
    (
        "image-url",
        ("](",),
        re.compile(
            r"!\[[^\]\n]{0,80}\]\(\s?https?://[^)\s]{1,200}[?&/=][^)\s]{0,100}"
            r"(?:[{<\[$]|%7b|data|secret|prompt|context|history|chat|summary|=\))"
        ),
    ),
    (
        "to-models",
        ("if you are a", "attention", "note ", "message ", "instruction", "dear", "hey", "important"),
        re.compile(
            r"\b(?:if you are an?|attention|note (?:to|for)|message (?:to|for)|instructions? (?:to|for)|dear|hey"
            rf"|important[ :]{{1,3}}(?:to|for)?) ?(?:all |any |the )?{_NAMES}\b"
        ),
    ),
    (
        "to-models",
        (
            *("reading", "processing", "summari", "parsing", "reviewing", "analy", "handling", "ingesting"),
            *("visiting", "indexing", "screening"),
        ),
        re.compile(
            rf"\b{_NAMES}\b[\w ,]{{0,20}}\b(?:reading|processing|summari[sz]ing|parsing|reviewing|analy[sz]ing"
            r"|handling|ingesting|visiting|indexing|screening) (?:this|the)\b"
        ),
    ),
    ("comment", ("<!--",), re.compile(r"<!--[^>]{0,200}(?:ai|assistant|instruction|ignore|system)")),
    ("override-tag", ("[",), re.compile(r"\[(?:system|admin|override|urgent|hidden|sudo|new)[ _\w:.\-]{0,30}\]")),
    ("override-tag", tuple(f"system{mark}override" for mark in ("", *" _-")), re.compile(r"\bsystem[ _-]?override\b")),
)
# What a model is called, or the first word of it, alone or right after the word that addresses it.
_NAMED = glance.one_of(
    [
        f"{before}{called}"
        for called in ("ai", "llm", "llms", "language", *(f"{one}{s}" for one in _CALLED for s in ("", "s")))
        for before in ("", "a", "an", "attention", "to", "for", "dear", "hey", "important")
    ]
)
# With one of these marks close by, such a sentence is an attack.
_SUSPECT = re.compile(r"O.{0,6}[IPLY]|[NW].{0,8}[UM]|R.{0,6}[SDI]|U|T|E.{0,6}D|Y.{0,4}C|G.{0,3}X|WC|W.{0,3}Y")
_CARRIERS = frozenset({"chat-token", "to-models", "override-tag", "image-url"})


def marks(text: str) -> list[Hit]:
    """The literal marks in a folded text; each is only a hint."""
    return [
        Hit(name, match.start(), match.end())
        for name, literals, mark in _MARKS
        if any(literal in text for literal in literals) and (name != "to-models" or _NAMED(glance.as_ascii(text)))
        for match in mark.finditer(text)
    ]


def matches(
    parts: Sequence[Sentence], marked: Sequence[Hit], seen: Set[tuple[str, ...]] = frozenset()
) -> Iterator[Hit]:
    """The rules that match sentences of a folded text, each once a sentence; not those `seen` in another reading."""
    for part in parts:
        near = [hit for hit in marked if part.start - 200 <= hit.start <= part.end] if marked else ()
        if (not marked and part.tokens in seen) or not (near or _NEEDED.search(part.concepts)) or excused(part):
            continue
        bare = part.concepts.replace('"', "")
        named = set()
        for rule, concept, pattern in _CONCEPTS:
            if concept in bare and rule not in named and (match := pattern.search(bare)):
                named.add(rule)
                yield Hit(rule, part.start, part.end, _around(part, match))
        if near and (match := _SUSPECT.search(bare)):
            for hit in near:
                if hit.rule in _CARRIERS:
                    yield Hit(hit.rule, hit.start, max(hit.end, part.end), _around(part, match))


def excused(part: Sentence) -> bool:
    """Whether a sentence talks about text, so that rules do not judge it."""
    if '"' not in part.tokens:
        return _TALK.search(part.concepts) is not None or part.tokens[0] in _ASKING
    outside, concepts, quoting = list[str](), "", False
    for word, concept in zip(part.tokens, part.concepts, strict=True):
        if word == '"':
            quoting = not quoting
        elif not quoting:
            outside.append(word)
            concepts += concept
    if not outside:
        return False
    spoken = " ".join(outside)
    if outside[0] in _ASKING:
        return True
    return not _DOING.search(spoken) and ("V" in concepts or _REPORTING.search(spoken) is not None)


def _around(part: Sentence, match: re.Match[str]) -> Sentence:
    """The words around a match in the concepts without quotation marks."""
    kept = [at for at, word in enumerate(part.tokens) if word != '"']
    near = kept[max(0, match.start() - _AROUND) : match.end() + _AROUND]
    first, last = near[0], near[-1] + 1
    return Sentence(part.tokens[first:last], part.concepts[first:last], part.start, part.end)
