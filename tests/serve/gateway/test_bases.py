"""Models of several base models behind one gateway: each has its own engines, and only those."""

from __future__ import annotations

from serve.gateway.world import World, until

SMALL = {"base": "small", "base_digest": "sha256:small", "template_digest": "sha256:one"}
LARGE = {"base": "large", "base_digest": "sha256:large", "template_digest": "sha256:other"}


def test_each_base_s_engines_answer_for_its_models_alone_and_one_that_is_away_takes_no_other_model_along(
    world: World,
) -> None:
    world.bases = {"s1": SMALL, "s2": SMALL, "l1": LARGE}
    small = [world.engine(name, "bot@1") for name in ("s1", "s2")]
    large = world.engine("l1", "cat@1", "cat@2")
    world.route((1, 10_000))
    world.route((1, 5_000), (2, 5_000), model="cat")
    gateway = world.gateway()

    def ask(model: str, n: int) -> int:
        return gateway.chat(model=model, unit=f"user-{n}", stream=n % 2 == 0).status

    def asked_of_small() -> list[str]:
        return [seen.body["model"] for engine in small for seen in engine.seen]

    assert {ask(model, n) for n in range(20) for model in ("bot", "cat")} == {200}
    assert asked_of_small() == ["bot@1"] * 20
    assert len(large.seen) == 20
    assert {seen.body["model"] for seen in large.seen} == {"cat@1", "cat@2"}

    large.stop()
    assert [(ask("cat", n), ask("bot", n)) for n in range(4)] == [(503, 200)] * 4
    world.serves("l1")
    until(lambda: gateway.chat(model="cat").error["code"] == "no_engine_ready")
    assert asked_of_small() == ["bot@1"] * 24

    back = world.engine("l1", "cat@1", "cat@2")
    until(lambda: ask("cat", 0) == 200)
    assert (len(back.seen), asked_of_small()) == (1, ["bot@1"] * 24)
