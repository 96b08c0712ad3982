"""Where an adapter's files lie: in a folder that its digest names, and there for as long as vLLM may read them.

vLLM reads an adapter again from the path it was given, whenever others have pushed it out of its memory, and takes the
name and the path for the content in its prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from serve.engine.fake_vllm import FakeVllm
from serve.engine_support import publish_adapter, write_adapter
from tuneloop.registry import Registry
from tuneloop.registry.errors import Unavailable
from tuneloop.registry.nouns import Arm, Version
from tuneloop.registry.versions.adapters import Base, Limits, base_shapes
from tuneloop.serve.engine.agent import Agent
from tuneloop.serve.engine.client import EngineClient
from tuneloop.serve.engine.keeper import Keeper
from tuneloop.serve.engine.launch import Launch
from tuneloop.serve.engine.reconcile import Gateways
from tuneloop.serve.engine.settings import EngineSettings
from tuneloop.serve.engine.supervisor import Supervisor
from tuneloop.serve.engine.turn import LoadTurn
from tuneloop.serve.engine.wanted import RegistryWatch, Sight

SETTINGS = EngineSettings(id="e1")


class Disk:
    """One engine's files: two published versions, and a keeper that fetches them."""

    def __init__(self, registry: Registry, home: Path) -> None:
        base = home / "tiny"
        base.mkdir()
        projection = {"model.layers.0.self_attn.q_proj.weight": np.zeros((12, 8), np.float32)}
        save_file(projection, base / "model.safetensors")
        (base / "config.json").write_text("{}")
        (base / "chat_template.jinja").write_text("{{ messages }}")
        self.one, self.two = (
            publish_adapter(registry, write_adapter(home / f"adapter-{seed}", base, seed=seed), base) for seed in (1, 2)
        )
        self.root = home / "adapters"
        self.base = Base(base.name, self.one.base_digest, self.one.template_digest)
        self.watch = RegistryWatch(lambda: Registry.open(registry.settings), engine_id="e1", base=self.base, home=home)
        self._limits = Limits(self.base, 16, base_shapes(base))

    def keeper(self, client: EngineClient) -> Keeper:
        turn = LoadTurn(lambda: self.watch.registry.database, self.base.digest, say=print)
        return Keeper(SETTINGS, self._limits, client, self.watch, base="tiny", root=self.root, say=print, turn=turn)

    def folder(self, version: Version) -> Path:
        return self.root / version.artifact_digest.removeprefix("sha256:")

    def files(self, *versions: Version) -> set[str]:
        """What lies there of these versions: their folders, each with its signature beside it."""
        folders = {self.folder(version).name for version in versions}
        return folders | {f"{self.folder(version).name}.{version.signed_by}.sig" for version in versions}

    def there(self) -> set[str]:
        return {path.name for path in self.root.iterdir()}


@pytest.fixture
def disk(registry: Registry, tmp_path: Path) -> Disk:
    return Disk(registry, tmp_path)


async def until(keeper: Keeper, sight: Sight, true: Callable[[], bool]) -> None:
    """The passes an agent would make, without its pauses."""
    for _ in range(6):
        await keeper.step(sight)
        await asyncio.gather(*keeper._fetches.values())
        if true():
            return
    raise AssertionError(f"not in 6 passes: {keeper.held}")


def test_vllm_gets_a_folder_named_by_the_digest_which_stays_when_it_is_unloaded_and_is_the_same_when_it_comes_back(
    disk: Disk,
) -> None:
    vllm, (one, two) = FakeVllm(), (disk.one, disk.two)
    both, other = Sight((one, two), gateways=Gateways()), Sight((two,), gateways=Gateways())

    async def act() -> None:
        async with vllm.serving() as url, EngineClient(url) as client:
            keeper = disk.keeper(client)
            await until(keeper, both, lambda: keeper.ready)
            await until(keeper, other, lambda: vllm.adapters == [two.name])
            assert disk.there() == disk.files(one, two), "vLLM may read it as long as it lives"
            await until(keeper, both, lambda: one.name in vllm.adapters)
            await keeper.close()

    asyncio.run(act())
    loads = [{"lora_name": each.name, "lora_path": str(disk.folder(each))} for each in (one, two, one)]
    assert vllm.loads == loads, "nothing else: load_inplace would have it read the files again while it serves"


def test_what_nothing_wants_is_deleted_and_nothing_where_nobody_knows_what_is_wanted(disk: Disk) -> None:
    for version in (disk.one, disk.two):
        disk.watch.fetch(version, disk.root)
    (disk.root / ".fetch-killed").mkdir()

    async def act() -> None:
        async with EngineClient(SETTINGS.local_url) as client:
            keeper = disk.keeper(client)
            keeper.collect(None)
            assert disk.there() == {*disk.files(disk.one, disk.two), ".fetch-killed"}
            keeper.collect(Sight((disk.two,)))
            assert disk.there() == disk.files(disk.two)
            await keeper.close()

    asyncio.run(act())


def test_files_are_deleted_before_vllm_is_started(disk: Disk, registry: Registry, tmp_path: Path) -> None:
    found: list[set[str]] = []
    for version in (disk.one, disk.two):
        disk.watch.fetch(version, disk.root)
    arms = [Arm(version=disk.two.version, weight_bp=10_000)]
    registry.routes.write(disk.two.model, arms, by="t", reason="t", expected_revision=0)
    disk.watch.look()

    class Starting(Supervisor):
        async def keep(self) -> None:
            found.append(disk.there())
            raise Unavailable("no vLLM here")

    async def act() -> None:
        async with EngineClient(SETTINGS.local_url) as client:
            launch = Launch((), {})
            supervisor = Starting(SETTINGS, launch, client, base="tiny", home=tmp_path, say=print)
            await Agent(SETTINGS, disk.base, supervisor, disk.keeper(client), disk.watch, say=print).run()

    with pytest.raises(Unavailable, match="no vLLM here"):
        asyncio.run(act())
    assert found == [disk.files(disk.two)]
