"""Progress is what tells a living engine from a hung one."""

from __future__ import annotations

from tuneloop.serve.engine.health import HealthWatch, Pulse, Verdict


def watch_of(pulses: list[tuple[float, Pulse]]) -> list[Verdict]:
    watch = HealthWatch(hang_timeout_s=60.0, now_s=0.0)
    return [watch.observe(pulse, at) for at, pulse in pulses]


def test_an_engine_whose_tokens_move_is_alive_for_ever() -> None:
    assert set(watch_of([(at, Pulse(at, healthy=True)) for at in range(0, 600, 20)])) == {Verdict.ALIVE}


def test_an_idle_engine_is_asked_for_a_token_and_lives_when_it_comes() -> None:
    idle = Pulse(7.0, healthy=True)
    verdicts = watch_of(
        [(0, idle), (29, idle), (30, idle), (59, Pulse(8.0, healthy=True)), (88, Pulse(8.0, healthy=True))]
    )
    assert verdicts == [Verdict.ALIVE, Verdict.ALIVE, Verdict.ASK, Verdict.ALIVE, Verdict.ALIVE]


def test_an_engine_that_says_it_is_healthy_but_makes_no_token_is_hung() -> None:
    stuck = Pulse(7.0, healthy=True)
    assert watch_of([(0, stuck), (59, stuck), (60, stuck)]) == [Verdict.ALIVE, Verdict.ASK, Verdict.HUNG]


def test_an_engine_that_answers_nothing_is_hung_not_dead() -> None:
    silent = Pulse(None, healthy=False)
    assert watch_of([(1, silent), (2, silent), (3, silent), (60, silent)]) == [*[Verdict.ALIVE] * 3, Verdict.HUNG]


def test_an_engine_that_calls_itself_dead_three_times_is_dead() -> None:
    dead, fine = Pulse(7.0, healthy=False), Pulse(7.0, healthy=True)
    assert watch_of([(1, dead), (2, dead), (3, fine), (4, dead), (5, dead)])[-1] is Verdict.ALIVE
    assert watch_of([(1, dead), (2, dead), (3, dead)])[-1] is Verdict.DEAD
