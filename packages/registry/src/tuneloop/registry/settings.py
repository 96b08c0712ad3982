"""Settings: one object per process, from `tuneloop.toml` and `TUNELOOP_…` variables, each value with its origin.

Order: variable, `<variable>_FILE` (a file holding the value, for secrets), the section's table in `tuneloop.toml`,
default. Nothing outside the classes built here reads the environment.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tuneloop.registry.errors import InvalidInput
from tuneloop.registry.logs import LogFormat

# Every process reads the one file, also where not every package is installed: a table is known by its name alone.
SECTIONS = ("registry", "gateway", "engine", "monitor", "train", "worker", "controller", "api")
_USERINFO = re.compile(r"(?<!sqlite)://\S*@")
_PASSWORD_AS_PORT = re.compile(r"(?<=://)([^\s/@:?\[]*):(?!\d+(?:[/?\s]|$))[^\s/@?]+")
_PASSWORD_OPTION = re.compile(r"((?:password|passwd|pwd|secret|token)\s*=\s*)(?:'[^']*'|[^\s&;]*)", re.IGNORECASE)


def without_password(text: str) -> str:
    """A text with the passwords of the URLs in it hidden, also of URLs that are malformed.

    Up to the last @ of a word nothing is shown: a password may itself hold an @ that should have been escaped.
    """
    text = _PASSWORD_AS_PORT.sub(r"\1:***", _USERINFO.sub("://***@", text))
    return _PASSWORD_OPTION.sub(r"\1***", text)


def first_line(error: Exception) -> str:
    """Of what an error says, without passwords."""
    return without_password(str(error).strip().splitlines()[0])


def shown_url(url: str) -> str:
    """A setting that is a URL, or was meant as one, as it may be printed."""
    if "@" in url and "://" not in url:
        return f"***@{url.rpartition('@')[2]}"
    return without_password(url)


class Section(BaseSettings):
    """Base of every settings object: one TOML table, one variable prefix."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)
    section: ClassVar[str]

    @classmethod
    def prefix(cls) -> str:
        """What this section's variables begin with, for example `TUNELOOP_GATEWAY_`."""
        return "TUNELOOP_" if cls.section == "registry" else f"TUNELOOP_{cls.section.upper()}_"

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """The effective settings; `overrides` (command-line options that were given) win.

        Raises:
            InvalidInput: an unknown key or a value of the wrong kind; every error at once.
        """
        values = {name: value for name, (value, _) in cls._found().items()}
        values |= {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [f"[{cls.section}] {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise InvalidInput("settings: " + "; ".join(lines)) from None

    def origins(self) -> dict[str, tuple[Any, str]]:
        """Field → (effective value, where it came from), for `tuneloop config`: passwords are hidden."""
        found = self._found()
        return {
            name: (_shown(name, getattr(self, name)), found[name][1] if name in found else "default")
            for name in type(self).model_fields
        }

    @property
    def stop_timeout_s(self) -> float:
        """How long the section's process may take to end in order, after SIGTERM."""
        return 30.0

    @staticmethod
    def tables() -> tuple[Path, dict[str, Any]]:
        """The file `TUNELOOP_CONFIG` names, or `tuneloop.toml` if there is one, and every table in it.

        Raises:
            InvalidInput: the file is no TOML, holds a table that no process reads, or was named and does not exist.
        """
        named = os.environ.get("TUNELOOP_CONFIG")
        path = Path(named or "tuneloop.toml")
        if not path.is_file():
            if named:
                raise InvalidInput(f"TUNELOOP_CONFIG names {path}, which is no file")
            return path, {}
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidInput(f"{path}: {error}") from None
        for name in [name for name in tables if name not in SECTIONS]:
            close = difflib.get_close_matches(name, SECTIONS, n=1)
            hint = f"did you mean [{close[0]}]?" if close else f"known: {', '.join(SECTIONS)}"
            raise InvalidInput(f"{path}: nothing reads [{name}]; {hint}")
        return path, tables

    @staticmethod
    def given(section: str, name: str) -> tuple[Any, str] | None:
        """One value of another process's section as it is written, unchecked, and where; None where it is nowhere.

        Raises:
            InvalidInput: as `tables`, or the file its `…_FILE` names cannot be read.
        """
        if (found := _in_environment(f"TUNELOOP_{section.upper()}_{name.upper()}")) is not None:
            return found
        path, tables = Section.tables()
        table = tables.get(section)
        return (table[name], str(path)) if isinstance(table, dict) and name in table else None

    @classmethod
    def _found(cls) -> dict[str, tuple[Any, str]]:
        path, tables = cls.tables()
        table = tables.get(cls.section, {})
        if not isinstance(table, dict):
            raise InvalidInput(f"{path}: {cls.section} must be a table, [{cls.section}]")
        unknown = []
        for name in [name for name in table if name not in cls.model_fields]:
            close = difflib.get_close_matches(name, cls.model_fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(cls.model_fields)}"
            unknown.append(f"[{cls.section}] has no key {name!r}; {hint}")
        if unknown:
            raise InvalidInput(f"{path}: {'; '.join(unknown)}")
        if unread := cls._unread():
            raise InvalidInput(f"environment: {'; '.join(unread)}")
        found: dict[str, tuple[Any, str]] = {name: (value, str(path)) for name, value in table.items()}
        for name in cls.model_fields:
            if (set_there := _in_environment(cls.prefix() + name.upper())) is not None:
                found[name] = set_there
        return found

    @classmethod
    def _unread(cls) -> list[str]:
        """What is wrong with each variable of this section that nothing reads."""
        known = [cls.prefix() + name.upper() for name in cls.model_fields]
        read = {*known, *(f"{variable}_FILE" for variable in known), "TUNELOOP_CONFIG"}
        owned = tuple(f"TUNELOOP_{name.upper()}_" for name in SECTIONS if name not in {cls.section, "registry"})
        found = []
        for variable in sorted(os.environ):
            if not variable.startswith(cls.prefix()) or variable in read or variable.startswith(owned):
                continue
            name = variable.removeprefix(cls.prefix()).lower()
            close = difflib.get_close_matches(name.removesuffix("_file"), cls.model_fields, n=1)
            hint = f"did you mean {cls.prefix()}{close[0].upper()}?" if close else f"known: {', '.join(known)}"
            if cls.section == "registry" and not close:
                near = difflib.get_close_matches(name.partition("_")[0], SECTIONS, n=1)
                hint = f"did you mean TUNELOOP_{near[0].upper()}_…?" if near else hint
            found.append(f"nothing reads {variable}; {hint}")
        return found

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (pydantic's signature, here and below)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` found counts; pydantic's own sources would hide where a value came from."""
        return (init_settings,)


class RegistrySettings(Section):
    """Where state lives. Everything defaults to one folder on one machine."""

    section = "registry"

    home: Path = Path(".tuneloop")
    log_format: LogFormat = "text"  # of gateways, monitors, controllers and the control plane; json: an object a line
    database_url: str = ""  # default: SQLite in `home`
    mlflow_uri: str = ""  # default: SQLite in `home`; an http:// tracking server works the same way
    artifact_root: str = ""  # default: a folder in `home`; ignored when `mlflow_uri` is a server, which has its own
    signing: Literal["key", "certificate", "sigstore"] = "key"  # how versions are signed, and which are loaded
    signing_key: Path | None = None  # what versions are signed with; default: a key in `home`, made when it is needed
    signing_certificate: Path | None = None  # of that key (PEM), and behind it those above it, without the root
    signing_identity: str = ""  # whose signatures count, by certificate (default: anybody's) or by Sigstore
    signing_issuer: str = ""  # URL of the OpenID provider that vouches for the identity to Sigstore
    sigstore_token: Path | None = None  # file with an identity token, read at each signing; default: the machine's own
    sigstore_trust: Path | None = None  # file that describes a Sigstore instance; default: the public one
    trusted_keys: Path | None = None  # folder of public keys (*.pem) whose versions are loaded; default: in `home`
    trusted_roots: Path | None = None  # the root certificates (one PEM file) whose certificates' versions are loaded
    unsigned_versions: Literal["refuse", "accept"] = "refuse"  # what engines and trainers do with them

    @model_validator(mode="after")
    def _home_fits_a_url(self) -> Self:
        here = str(self.home.resolve())
        if any(c in here for c in "?%") and not (self.database_url and self.mlflow_uri):
            raise ValueError(
                f"home {here} holds a ? or a %, which mean something else in a database's URL: the state would lie "
                "elsewhere; choose another folder"
            )
        return self

    @model_validator(mode="after")
    def _says_whom_to_trust(self) -> Self:
        if self.signing == "certificate" and self.trusted_roots is None:
            raise ValueError("signing = 'certificate' needs trusted_roots: whose certificates count is yours to say")
        if self.signing == "sigstore" and not (self.signing_identity and self.signing_issuer):
            raise ValueError(
                "signing = 'sigstore' needs signing_identity and signing_issuer: anybody can sign by Sigstore, so "
                "whose signatures count is yours to say"
            )
        return self

    @property
    def database(self) -> str:
        """The effective database URL."""
        return self.database_url or f"sqlite:///{self.home.resolve() / 'tuneloop.db'}"

    @property
    def mlflow(self) -> str:
        """The effective MLflow tracking and registry URI."""
        return self.mlflow_uri or f"sqlite:///{self.home.resolve() / 'mlflow.db'}"

    @property
    def artifacts(self) -> str | None:
        """Where new MLflow experiments keep artifacts; None leaves it to the MLflow server."""
        if self.artifact_root:
            return self.artifact_root
        return None if self.mlflow.startswith("http") else (self.home.resolve() / "artifacts").as_uri()


class ApiSettings(Section):
    """What the control plane listens on, what it lets through, and how long it waits."""

    section = "api"

    host: str = "127.0.0.1"  # it speaks plain HTTP: beyond this machine only behind something that speaks TLS
    port: int = Field(default=8102, ge=0, le=65_535)
    rate_per_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)  # requests of one token, in the long run
    burst: int = Field(default=50, ge=1)  # and at once
    failures_per_minute: float = Field(default=30.0, gt=0, allow_inf_nan=False)  # of one address, without a valid token
    max_body_bytes: int = Field(default=65_536, ge=1)
    max_connections: int = Field(default=512, ge=1)  # at a time; each costs a file descriptor
    header_timeout_s: float = Field(default=10.0, gt=0)  # a client must have sent its request's head by then
    body_timeout_s: float = Field(default=10.0, gt=0)  # and its body, as long after that
    drain_s: float = Field(default=30.0, ge=0)  # after SIGTERM: for requests to end

    @property
    def stop_timeout_s(self) -> float:
        """Requests end within `drain_s`, what one of them asked of an MLflow that is away within 45 s more."""
        return self.drain_s + 50.0


def _in_environment(variable: str) -> tuple[str, str] | None:
    """The value of a variable, or else of the file that `<variable>_FILE` names, and which of them it was."""
    if variable in os.environ:
        return os.environ[variable], variable
    if f"{variable}_FILE" not in os.environ:
        return None
    secret = Path(os.environ[f"{variable}_FILE"])
    try:
        return secret.read_text(encoding="utf-8").strip(), f"{variable}_FILE"
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{variable}_FILE: {secret} cannot be read: {error}") from None


def _shown(name: str, value: Any) -> Any:
    return shown_url(value) if isinstance(value, str) and name.endswith(("_url", "_uri")) else value


class ControllerSettings(Section):
    """How often the controller looks."""

    section = "controller"

    every_s: float = Field(default=1.0, gt=0, le=60)  # pause between looks at a rollout
    aliases_every_s: float = Field(default=3.0, gt=0, le=5)  # and at MLflow's aliases: a foreign move is seen in 10 s


SETTINGS: tuple[type[Section], ...] = (RegistrySettings, ControllerSettings, ApiSettings)
