"""Settings: every value knows where it came from, and a misspelt one is an error, not a default."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tuneloop.registry import settings
from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.settings import SECTIONS, RegistrySettings, Section


class Oven(Section):
    """A section as the packages make them."""

    section = "oven"
    heat_c: int = 180
    door: str = "closed"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SECTIONS", (*SECTIONS, "oven"))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TUNELOOP_")]:
        monkeypatch.delenv(name)


def test_a_variable_wins_over_its_file_the_table_and_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def now() -> tuple[int, str]:
        value, origin = Oven.load().origins()["heat_c"]
        return value, origin

    assert now() == (180, "default")
    (tmp_path / "tuneloop.toml").write_text("[oven]\nheat_c = 200\n")
    assert now() == (200, "tuneloop.toml")
    (tmp_path / "heat").write_text("220\n")
    monkeypatch.setenv("TUNELOOP_OVEN_HEAT_C_FILE", str(tmp_path / "heat"))
    assert now() == (220, "TUNELOOP_OVEN_HEAT_C_FILE")
    monkeypatch.setenv("TUNELOOP_OVEN_HEAT_C", "240")
    assert now() == (240, "TUNELOOP_OVEN_HEAT_C")
    assert Oven.load(heat_c=260, door=None) == Oven(heat_c=260)


def test_the_registrys_own_variables_have_no_section_in_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_HOME", "/srv/tuneloop")
    settings = RegistrySettings.load()
    assert settings.database == "sqlite:////srv/tuneloop/tuneloop.db"
    assert settings.mlflow == "sqlite:////srv/tuneloop/mlflow.db"
    assert settings.artifacts == "file:///srv/tuneloop/artifacts"


def test_an_mlflow_server_keeps_its_own_artifacts_unless_told() -> None:
    assert RegistrySettings(mlflow_uri="http://mlflow:5000").artifacts is None
    assert RegistrySettings(mlflow_uri="http://mlflow:5000", artifact_root="s3://b/a").artifacts == "s3://b/a"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[oven]\nheat = 200\n", r"tuneloop\.toml: \[oven\] has no key 'heat'; did you mean heat_c\?"),
        ("[oven]\nwattage = 9\ndor = 'x'\n", r"'wattage'; known: heat_c, door; .*'dor'; did you mean door\?"),
        ("[oven]\nheat_c = 'hot'\ndoor = 3\n", r"\[oven\] heat_c: .*; \[oven\] door: "),
        ("[oven\n", r"tuneloop\.toml: "),
        ("oven = 3\n", r"oven must be a table"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong_in_it(tmp_path: Path, toml: str, message: str) -> None:
    (tmp_path / "tuneloop.toml").write_text(toml)
    with pytest.raises(InvalidInput, match=message):
        Oven.load()


def test_a_table_that_nothing_reads_is_an_error_for_every_process(tmp_path: Path) -> None:
    (tmp_path / "tuneloop.toml").write_text("[gatway]\nport = 1\n")
    with pytest.raises(InvalidInput, match=r"nothing reads \[gatway\]; did you mean \[gateway\]\?"):
        Oven.load()


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("TUNELOOP_OVEN_HEATC", r"nothing reads TUNELOOP_OVEN_HEATC; did you mean TUNELOOP_OVEN_HEAT_C\?"),
        ("TUNELOOP_OVEN_DOR_FILE", r"did you mean TUNELOOP_OVEN_DOOR\?"),
        ("TUNELOOP_OVEN_WATTAGE", r"known: TUNELOOP_OVEN_HEAT_C, TUNELOOP_OVEN_DOOR"),
    ],
)
def test_a_variable_that_nothing_reads_is_an_error_of_its_section_alone(
    monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(InvalidInput, match=message):
        Oven.load()
    assert RegistrySettings.load().home == Path(".tuneloop")


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("TUNELOOP_HOEM", r"did you mean TUNELOOP_HOME\?"),
        ("TUNELOOP_GATWAY_PORT", r"nothing reads TUNELOOP_GATWAY_PORT; did you mean TUNELOOP_GATEWAY_…\?"),
    ],
)
def test_a_variable_of_no_section_is_an_error_of_every_process(
    monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(InvalidInput, match=message):
        RegistrySettings.load()


def test_the_sections_that_are_known_are_those_the_packages_have() -> None:
    points = entry_points(group="tuneloop.settings")
    assert {section.section for point in points for section in point.load()} == set(SECTIONS)


@pytest.mark.parametrize("name", ["a?b", "a%41b"])
def test_a_home_that_a_url_would_misplace_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("TUNELOOP_HOME", str(tmp_path / name))
    with pytest.raises(InvalidInput, match=r"holds a \? or a %.*choose another folder"):
        RegistrySettings.load()
    monkeypatch.setenv("TUNELOOP_DATABASE_URL", "postgresql://h/db")
    monkeypatch.setenv("TUNELOOP_MLFLOW_URI", "http://mlflow:5000")
    assert RegistrySettings.load().home == tmp_path / name


def test_files_that_are_named_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_OVEN_DOOR_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidInput, match=r"TUNELOOP_OVEN_DOOR_FILE: .*nowhere cannot be read"):
        Oven.load()
    monkeypatch.setenv("TUNELOOP_CONFIG", str(tmp_path / "other.toml"))
    with pytest.raises(InvalidInput, match=r"TUNELOOP_CONFIG names .*other\.toml, which is no file"):
        Oven.load()


def test_another_file_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text("[oven]\ndoor = 'open'\n[gateway]\nport = 1\n")
    monkeypatch.setenv("TUNELOOP_CONFIG", str(tmp_path / "other.toml"))
    assert Oven.load().door == "open"
