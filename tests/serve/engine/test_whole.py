"""An engine of one version of whole weights: what it refuses, and what it remembers while the registry is away."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests_support import publish_version
from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, NotFound, Unavailable
from tuneloop.registry.nouns import Arm, Version
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.engine.whole import WholeWatch, fetch_whole


def away() -> Registry:
    raise Unavailable("the database does not answer")


def test_a_version_is_fetched_once_and_serves_on_while_the_registry_is_away(registry: Registry, tmp_path: Path) -> None:
    made = publish_version(registry, tmp_path / "v1", kind="full")
    home, said = tmp_path / "engine", list[str]()
    home.mkdir()
    with pytest.raises(Unavailable, match="does not answer"):
        fetch_whole(made.name, away, home, say=said.append)

    def opened() -> Registry:
        return Registry.open(registry.settings)

    version, folder = fetch_whole(made.name, opened, home, say=said.append)
    assert version == made
    assert (fetch_whole(made.name, away, home, say=said.append), len(said)) == ((version, folder), 1)
    with pytest.raises(Unavailable):
        fetch_whole("bot@2", away, home, say=said.append)
    later, other = fetch_whole(
        publish_version(registry, tmp_path / "v2", kind="full").name, opened, home, say=said.append
    )
    assert other.is_dir()
    assert not folder.exists(), "what this engine served before is gone"
    assert fetch_whole(made.name, opened, home, say=said.append)[1] == folder
    assert (other.exists(), later.version) == (False, 2)
    changed = next(path for path in sorted(folder.iterdir()) if path.is_file())
    changed.chmod(0o600)
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(Unavailable):  # nobody can say what these files are
        fetch_whole(made.name, away, home, say=said.append)


def test_an_adapter_and_what_is_not_there_have_no_engine_of_their_own(registry: Registry, tmp_path: Path) -> None:
    publish_version(registry, tmp_path / "v1")

    def fetched(name: str) -> None:
        fetch_whole(name, lambda: Registry.open(registry.settings), tmp_path, say=print)

    with pytest.raises(InvalidInput, match="bot@1 is an adapter; start an engine with its base"):
        fetched("bot@1")
    with pytest.raises(NotFound):
        fetched("bot@7")
    for wrong in ({"version": "bot"}, {"version": "bot@1", "base": "/bases/small"}):
        with pytest.raises((ValidationError, InvalidInput)):
            EngineSettings.load(**wrong)


def test_the_agent_is_told_whether_a_route_names_its_version(registry: Registry, tmp_path: Path) -> None:
    version: Version = publish_version(registry, tmp_path / "v1", kind="full")
    watch = WholeWatch(lambda: Registry.open(registry.settings), engine_id="e1", version=version)
    assert watch.look().strange == {"bot@1": "no route names it"}
    registry.routes.write("bot", [Arm(version=1, weight_bp=10_000)], by="t", reason="t", expected_revision=0)
    assert watch.look().strange == {}
    watch.leave()
