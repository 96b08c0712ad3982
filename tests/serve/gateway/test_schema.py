"""Schemathesis over the gateway's own document: no answer is a fault, and none has a status that stands nowhere.

What must be reached is asked for by examples, not hoped for: which others Hypothesis draws depends on what is loaded.
The gateway's threads draw nothing from `random`, which Hypothesis watches.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve.gateway.world import Address, make_world
from tuneloop.registry.settings import RegistrySettings
from tuneloop.serve.gateway.document import document
from tuneloop.serve.gateway.rest import FeedbackBody

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SAID: dict[str, Any] = {
    "ChatRequest": {"model": "bot", "messages": [{"role": "user", "content": "Hello?"}]},
    "CompletionRequest": {"model": "bot", "prompt": "Hello"},
    "ResponseRequest": {"model": "bot", "input": "Hello?"},
    "EmbeddingRequest": {"model": "bot", "input": ["Hello?"]},
    "Feedback": {"request_id": "req_0123456789abcdef01234567", "thumb": "up"},
}
DRAWN = settings(max_examples=8, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
if settings.get_current_profile_name() == "fuzz":  # `make fuzz`: other cases each time, and more of them
    DRAWN = settings()
Answers = defaultdict[str, set[int]]  # operation → the statuses that it answered with


def to_be_asked() -> dict[str, Any]:
    """The document, with examples; the engine here refuses nothing, so its refusals are taken out."""
    told: dict[str, Any] = json.loads(json.dumps(document(FeedbackBody)))
    for name, said in SAID.items():
        schema = told["components"]["schemas"][name]
        schema["example"] = said
        if "model" in schema["properties"]:  # one that is there, as often as not
            schema["properties"]["model"] = {"anyOf": [{"const": "bot"}, {"type": "string"}]}
    for operations in told["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("4XX", None)
            for parameter in operation.get("parameters", ()):
                parameter["example"] = "bot"
    return told


DOCUMENT = schemathesis.openapi.from_dict(to_be_asked())


@pytest.fixture(scope="module")
def gateway(empty_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    home = Path(copytree(empty_state, tmp_path_factory.mktemp("schema") / "home"))
    with ExitStack() as stack:
        world = make_world(RegistrySettings(home=home), stack)
        world.engine("e1", "bot@1", words=1)
        world.route((1, 10_000))
        yield world.gateway()


@pytest.fixture(scope="module")
def answers() -> Answers:
    """What the cases of this module were answered."""
    return defaultdict(set)


@DOCUMENT.parametrize()
@DRAWN
def test_no_answer_is_a_fault_or_undocumented(case: schemathesis.Case[Any], gateway: Address, answers: Answers) -> None:
    headers = {"authorization": f"Bearer {gateway.key}"}
    answer = case.call_and_validate(base_url=gateway.url, checks=CHECKS, headers=headers)
    answers[case.operation.label].add(answer.status_code)


def test_what_was_asked_above_went_as_deep_as_it_should(answers: Answers, request: pytest.FixtureRequest) -> None:
    """Every operation did what it is for, whatever else was drawn; nobody was kept out but who gave no key."""
    operations = len(list(DOCUMENT.get_all_operations()))
    of_it = [item for item in request.session.items if item.path == request.path and item is not request.node]
    if len(of_it) < operations:
        pytest.skip(f"it is about all {operations} operations, and {len(of_it)} were chosen to be asked")
    assert len(answers) == operations
    assert [label for label, statuses in answers.items() if not {200, 201} & statuses] == []
    assert not {403, 429} & set().union(*answers.values())


def test_the_document_is_served_as_it_is_and_names_every_path(gateway: Address) -> None:
    assert gateway.call("/openapi.json").json == document(FeedbackBody)
    served = gateway.call("/v1/nowhere").error["message"].rpartition("serves ")[2].split(", ")
    assert sorted(served) == sorted(document(FeedbackBody)["paths"])
