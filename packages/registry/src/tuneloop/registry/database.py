"""The one database: SQLite (WAL) or PostgreSQL behind SQLAlchemy 2, brought to the newest schema by Alembic.

Invariants: a write transaction is taken at once (`BEGIN IMMEDIATE` on SQLite), so compare-and-swap never reads a stale
row; what a transaction acknowledged survives kill -9.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, RowMapping, make_url

from tuneloop.registry.errors import DatabaseAway, InvalidInput, NotFound, Unavailable, Unreadable
from tuneloop.registry.nouns import Noun, said_of
from tuneloop.registry.settings import shown_url, without_password
from tuneloop.registry.tables import Json

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig

NounT = TypeVar("NounT", bound=Noun)
BUSY_TIMEOUT_MS = 15_000
_LAST = "write last"
_MIGRATIONS = Path(__file__).parent / "migrations"
_log = logging.getLogger(__name__)
_WHERE = "; `tuneloop config` shows where database_url comes from"
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
# A connection that swallows everything must end in an error, not in a thread that waits for ever.
_POSTGRESQL: dict[str, str | int] = {
    "connect_timeout": 3,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    # What one client holds and never lets go, every other would wait for: the server ends it soon, not in two hours.
    "options": "-c statement_timeout=60000 -c idle_in_transaction_session_timeout=15000 -c tcp_keepalives_idle=10 "
    "-c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
}


# What can be ended without being read, as `tuneloop db end` calls it.
DAMAGED = {
    "Rollout": "rollout",
    "RetrainingRequest": "retraining",
    "Experiment": "experiment",
    "Token": "token",
    "ApiKey": "key",
}


@cache
def newest_revision() -> str:
    """The schema this code is written for: migrations follow each other, and a file begins with its number."""
    return max(path.name.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


def _alembic() -> AlembicConfig:
    from alembic.config import Config  # noqa: PLC0415 (see `Database.upgrade`)

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


class Database:
    """A connection pool with two kinds of transaction: `reading` and `writing`."""

    def __init__(self, url: str, *, begin: bool = True) -> None:
        """`begin` makes an SQLite file that is not there.

        Raises:
            NotFound: it is not there, and is not to be begun.
        """
        parsed = _parsed(url)
        self.is_sqlite = parsed.drivername == "sqlite"
        if self.is_sqlite and parsed.database and not begin and not Path(parsed.database).exists():
            raise NotFound(
                f"no state in {Path(parsed.database).parent}: cd to where it was begun, or set TUNELOOP_HOME; "
                "`tuneloop config` shows which folder is meant"
            )
        if self.is_sqlite and parsed.database:
            try:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InvalidInput(
                    f"database_url {shown_url(url)!r}: its folder cannot be made: {error}{_WHERE}"
                ) from None
        self.url = parsed
        self._told: set[str] = set()
        self.shown = without_password(parsed.render_as_string(hide_password=True))
        connect_args = {} if self.is_sqlite else _POSTGRESQL
        self.engine: Engine = sa.create_engine(parsed, pool_pre_ping=not self.is_sqlite, connect_args=connect_args)
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _configure_sqlite)

    def upgrade(self) -> None:
        """Bring the schema to the newest revision; safe to repeat and to run from several processes at once.

        Writes, and waits for writers, only where the schema is behind.

        Raises:
            Unavailable: the database does not answer, or its schema is newer than this code.
        """
        there = self._revisions()
        if there == [newest_revision()]:
            return
        from alembic import command  # noqa: PLC0415 (0.3 s, and it runs every script: only where the schema is behind)
        from alembic.script import ScriptDirectory  # noqa: PLC0415
        from alembic.util import CommandError  # noqa: PLC0415

        config = _alembic()
        scripts = ScriptDirectory.from_config(config)
        known = {script.revision for script in scripts.walk_revisions()}
        if strange := [revision for revision in there if revision not in known]:
            raise Unavailable(
                f"database {self.shown} is at schema {', '.join(strange)}, which this tuneloop does not know "
                f"(its newest is {', '.join(scripts.get_heads())}): a newer tuneloop has upgraded it; install "
                f"that version here{_WHERE}"
            )
        with self._migrating() as connection:
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise Unavailable(
                    f"database {self.shown} cannot be brought to the newest schema: {error}{_WHERE}"
                ) from error

    def downgrade(self, revision: str) -> None:
        """Bring the schema back to an older revision, so that the version of tuneloop that ends there can be installed.

        What only newer ones hold is lost. Nothing else may be running: whatever opens the database brings it up again.

        Raises:
            InvalidInput: there is no such revision below the schema's.
            Unavailable: the database does not answer.
        """
        from alembic import command  # noqa: PLC0415 (see `upgrade`)
        from alembic.util import CommandError  # noqa: PLC0415 (see `upgrade`)

        if not revision.isdecimal():  # alembic would take `base` for: everything is to go
            raise InvalidInput(f"{revision!r} is no revision of the schema: four digits, as errors name it")
        config = _alembic()
        with self._migrating() as connection:
            config.attributes["connection"] = connection
            try:
                command.downgrade(config, revision)
            except CommandError as error:
                raise InvalidInput(f"database {self.shown} cannot be brought back to {revision!r}: {error}") from None

    @contextmanager
    def _migrating(self) -> Iterator[Connection]:
        with self.writing() as connection:
            if not self.is_sqlite:
                connection.execute(sa.text("SET LOCAL statement_timeout = 0"))  # an index of years takes its time
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7463001)"))
            yield connection

    def _revisions(self) -> list[str]:
        with self.reading() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return []
            return list(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars())

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            DatabaseAway: the database does not answer.
        """
        with self._guarded(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; commits at the end, or rolls back when the block raises.

        Raises:
            DatabaseAway: the database does not answer.
        """
        with self._guarded(), self.engine.begin() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            last: list[Callable[[], object]] = []
            connection.info[_LAST] = last
            try:
                yield connection
            finally:  # the pool hands the connection on, what was asked for here must not go with it
                del connection.info[_LAST]
            for write in last:
                write()

    def rows(self, query: sa.Select[Any]) -> Iterator[RowMapping]:
        """What a query finds: read to its end, and the transaction with it, before the first row comes, and each let
        go of as it is taken. A server ends a session that waits in a transaction, and who takes many rows is slow.

        Raises:
            DatabaseAway: the database does not answer.
        """
        with self.reading() as connection:
            found = list(connection.execute(query).all())
        found.reverse()
        while found:
            yield found.pop()._mapping

    def insert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        """An INSERT that knows ON CONFLICT, which both databases have in the same form."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.IntegrityError, sa.exc.DataError):
            raise  # the database is there; what was to be written is the problem, and the caller's to judge
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise DatabaseAway(f"database {self.shown}: {without_password(cause)}{_advice(error)}{_WHERE}") from error

    def tell(self, unreadable: Sequence[str]) -> None:
        """Log rows that a reading left out, each once: the same ones are read again and again."""
        for row in unreadable:
            if row not in self._told:
                self._told.add(row)
                _log.error("left out: %s", row)

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def write_last(connection: Connection, write: Callable[[], object]) -> None:
    """Have a `writing` transaction do this right before it commits, after all else it writes.

    For what every writer must wait for: it is then held briefly, and nobody who holds it waits for another row.
    """
    connection.info[_LAST].append(write)


def _parsed(url: str) -> sa.URL:
    """The URL, with the driver that is used; one that cannot be used is refused without showing its password."""
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # a port that is no number is a ValueError
        raise InvalidInput(
            f"database_url {shown_url(url)!r} is not a URL; write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
            + _WHERE
        ) from None
    if "@" in (parsed.host or ""):
        raise InvalidInput(
            f"database_url {shown_url(url)!r} holds more than one @; write %40 for one in a password{_WHERE}"
        )
    if parsed.drivername not in _DRIVERS:
        raise InvalidInput(
            f"database_url {shown_url(url)!r}: there is no driver for {parsed.drivername!r}; "
            f"write sqlite:///PATH or postgresql://…{_WHERE}"
        )
    return parsed.set(drivername=_DRIVERS[parsed.drivername])


def _advice(error: sa.exc.SQLAlchemyError) -> str:
    said = str(error).lower()
    if "malformed" in said or "not a database" in said:
        return "; the file is damaged or no database: restore it from a copy, or move it away to begin anew"
    if "no such table" in said or "no such column" in said or "undefined" in said:
        return "; its schema is not this version's: `tuneloop db upgrade`"
    return ""


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `writing` says, not where the driver guesses
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def row_of(noun: Noun, table: sa.Table) -> dict[str, Any]:
    """A noun as the row of its table; JSON columns get plain JSON."""
    names, as_json = _columns(table, type(noun))
    row = {name: getattr(noun, name) for name in names}
    plain = noun.model_dump(mode="json", include=as_json)
    row.update({name: said_of(getattr(noun, name), plain[name]) for name in as_json})
    return row


@cache
def _columns(table: sa.Table, kind: type[Noun]) -> tuple[tuple[str, ...], set[str]]:
    """The names of a table's columns that a noun has and that are no JSON, and of those that are."""
    shared = [column for column in table.columns if column.name in kind.model_fields]
    as_json = {column.name for column in shared if column.type is Json}
    return tuple(column.name for column in shared if column.name not in as_json), as_json


def noun_of(kind: type[NounT], row: Mapping[str, Any] | RowMapping) -> NounT:
    """A row as its noun; columns that only exist for the database are left out.

    Raises:
        Unreadable: the row is not what this version of tuneloop writes; the message names it.
    """
    try:
        return kind.model_validate({name: row[name] for name in kind.model_fields if name in row})
    except ValidationError as error:
        raise Unreadable(
            f"the database's {kind.__name__} {_identity(row)} cannot be read: {faults(error)}; it was changed by hand "
            "or written by another version of tuneloop: restore that row, or run the version that wrote it"
            f"{_end_it(kind, row)}"
        ) from None


def _end_it(kind: type[Noun], row: Mapping[str, Any] | RowMapping) -> str:
    if (named := DAMAGED.get(kind.__name__)) is None:
        return ""
    return f"; or end it as it is: `tuneloop db end {named} {_identity(row)} --by YOU --reason WHY`"


class Rows(list[NounT]):
    """The nouns that could be read, and `unreadable`: what is wrong with each row that could not. Good ones stay."""

    unreadable: tuple[str, ...] = ()

    def whole(self) -> Self:
        """These rows, where a decision needs every one.

        Raises:
            Unreadable: one of them cannot be read.
        """
        if self.unreadable:
            raise Unreadable("; ".join(self.unreadable))
        return self


def readable(kind: type[NounT], rows: Iterable[Mapping[str, Any] | RowMapping]) -> Rows[NounT]:
    """The rows as nouns; whoever reads them tells of the unreadable ones."""
    good: Rows[NounT] = Rows()
    wrong: list[str] = []
    for row in rows:
        try:
            noun = noun_of(kind, row)
        except Unreadable as error:
            wrong.append(str(error))
            continue
        if good:  # of the same columns: a set of each one's own would take as much memory as all else it holds
            object.__setattr__(noun, "__pydantic_fields_set__", good[0].__pydantic_fields_set__)
        good.append(noun)
    good.unreadable = tuple(wrong)
    return good


def faults(error: ValidationError) -> str:
    """Every fault of a noun in one line, without the values, which may be users' text."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'all of it'}: {e['msg']}" for e in error.errors())


def _identity(row: Mapping[str, Any] | RowMapping) -> str:
    # Of a row with a revision only an id that is a name says which it is; a route's is the number of its row.
    named = "id" in row and (isinstance(row["id"], str) or "revision" not in row)
    names = ("id",) if named else ("model", "revision", "version")
    if not any(name in row for name in names):
        names = ("name",)  # a token's
    return " ".join(str(row[name]) for name in names if name in row)
