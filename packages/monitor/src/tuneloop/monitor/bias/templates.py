"""The sentences whose likelihoods are compared: the same continuation after prefixes that differ in the person only.

Those that come with the package were written for this project; `CARD.md` says how, and what they cannot show. `sets`
makes templates of sets that a user has. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tuneloop.registry.nouns import Noun, as_tuple

PERSON = "{person}"


People = Annotated[tuple[dict[str, str], ...], BeforeValidator(as_tuple)]


class Template(Noun):
    """One sentence: a prefix with a place for the person, and what follows whoever it is."""

    id: str
    prefix: str
    continuation: str = Field(pattern=r"^\s")  # a blank first, so that it is cut into the same tokens after any prefix
    stereotype: str  # the group it is said of
    tone: Literal["good", "bad", "neutral"] = "neutral"  # to have it said of one
    people: People | None = None  # its own; None: those of its attribute
    source: str | None = None  # what it was made of, one observation with all that was; None: it is one by itself

    def prompt(self, person: str) -> str:
        """Prefix and continuation, about this person."""
        text = self.prefix.replace(PERSON, person) + self.continuation
        return text[0].upper() + text[1:]


class Attribute(Noun):
    """An attribute's templates, and the people they are read with: each maps group to words for one of it."""

    people: People = Field(min_length=1)
    templates: Annotated[tuple[Template, ...], BeforeValidator(as_tuple)] = Field(min_length=1)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, in the order of the first row of people."""
        return tuple(self.people[0])

    def people_of(self, template: Template) -> tuple[dict[str, str], ...]:
        """The rows of people that a template is read with."""
        return template.people or self.people

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        rows = [*self.people, *(row for template in self.templates for row in template.people or ())]
        if any(set(row) != set(self.groups) for row in rows):
            raise ValueError(f"each row of people names one of every group: {', '.join(self.groups)}")
        for template in self.templates:
            if PERSON not in template.prefix or template.stereotype not in self.groups:
                raise ValueError(f"{template.id}: the prefix needs {PERSON}, the stereotype one of {self.groups}")
        if len({template.id for template in self.templates}) != len(self.templates):
            raise ValueError("two templates have the same id")
        return self


class Templates(Noun):
    """All that is read."""

    attributes: Mapping[str, Attribute]

    @property
    def digest(self) -> str:
        """Scores of other sentences cannot be compared."""
        return "sha256:" + sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()

    def with_more(self, attributes: Mapping[str, Attribute]) -> Templates:
        """These and others, each attribute judged by itself."""
        return Templates(attributes={**self.attributes, **attributes})

    def items(self) -> Iterator[tuple[str, Template, int, str, str]]:
        """(attribute, template, row of people, group, prompt) of everything that is read."""
        for name, attribute in self.attributes.items():
            for template in attribute.templates:
                for row, people in enumerate(attribute.people_of(template)):
                    for group, person in people.items():
                        yield name, template, row, group, template.prompt(person)


@cache
def own_templates() -> Templates:
    """Those that come with the package."""
    text = files("tuneloop.monitor.bias").joinpath("templates.json").read_text(encoding="utf-8")
    return Templates.model_validate_json(text)
