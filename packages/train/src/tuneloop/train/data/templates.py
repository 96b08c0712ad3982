"""How a conversation becomes text: the base's own chat template, or the plain `### Instruction` one.

An engine asks with the template its base brings. So what is trained with another one says so: the template's digest is
the version's, an engine refuses a version whose digest is not its base's, and the template itself is published beside
the weights, for a merged export to carry.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from tuneloop.registry.versions.artifacts import text_digest
from tuneloop.train.data.rows import Row
from tuneloop.train.recipe.objective import Template

if TYPE_CHECKING:
    from tuneloop.train.base import Base

FILE = "chat_template.jinja"
INPUT = "### Input:\n"
_SYSTEM, _ASKED, _ANSWERED = ([{"role": role, "content": "x"}] for role in ("system", "user", "assistant"))
# The guide's format with the end-of-sequence token after each answer, without which none would ever end. Blank lines
# stand before a turn: nothing follows an answer's end that a tokenizer could draw together with the next turn.
INSTRUCTION = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\n### Response:\n' }}{% endif %}"
)


def template_text(name: Template) -> str | None:
    """The Jinja text of a template; None is the base's own."""
    return INSTRUCTION if name == "instruction" else None


def control_tokens(tokenizer: Any, name: Template) -> frozenset[str]:
    """What no row may hold, since it would open or close a turn: the tokens that the tokenizer names, and those that it
    flags as special and the template writes (Llama 3 names none of those that its turns begin with)."""
    text = template_text(name)
    own = tokenizer.chat_template if text is None else text
    written = [own] if isinstance(own, str) else list((own or {}).values())
    for turns, prompt in ((_SYSTEM + _ASKED, True), (_ASKED, True), (_ASKED + _ANSWERED, False)):
        with suppress(TemplateError):  # one of them it may refuse
            made = tokenizer.apply_chat_template(
                turns, chat_template=text, tokenize=False, add_generation_prompt=prompt
            )
            written.append(str(made))
    named = {str(token) for token in tokenizer.all_special_tokens}
    flagged = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(named | {token for token in flagged if any(token in one for one in written)})


def templated(base: Base, name: Template) -> Base:
    """The base as a recipe with this template knows it: its template digest is that of what is really used."""
    text = template_text(name)
    return base if text is None else replace(base, template_digest=text_digest(text))


def turns_of(row: Row, name: Template) -> list[dict[str, str]]:
    """The turns as a template is given them; with `instruction`, a row's input stands under its own heading."""
    turns = [{"role": message.role, "content": message.content} for message in row.messages]
    if name == "instruction" and row.input:
        asked = turns[-2]
        asked["content"] = asked["content"].removesuffix(row.input) + INPUT + row.input
    return turns
