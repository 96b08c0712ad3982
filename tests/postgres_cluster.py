"""A throw-away PostgreSQL server on a free port, and databases on it for tests.

It runs in a temporary folder; as root it runs as the `postgres` user, because the server refuses root. A new database
is three hundred files to copy and to remove again, and many tests take no longer. So one at the newest schema is lent,
and judged when it comes back: where somebody is still connected, or the schema is another one, it is dropped; otherwise
the tables that are not as they were migrated are truncated and filled as they were.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests_support import free_port
from tuneloop.registry import Registry
from tuneloop.registry.settings import RegistrySettings

_LEAVE_S = 0.5  # the server takes a moment to see that a client has gone
# Everything a migration can make or change, one line each.
_SCHEMA = """
SELECT format('column %s.%s %s %s %s %s', c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
              a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
  WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'p')
UNION ALL SELECT format('relation %s %s %s', relname, relkind, reloptions) FROM pg_class
  WHERE relnamespace = 'public'::regnamespace
UNION ALL SELECT format('index %s', pg_get_indexdef(i.indexrelid))
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = 'public'::regnamespace
UNION ALL SELECT format('constraint %s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
  WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT format('trigger %s %s', tgenabled, pg_get_triggerdef(oid)) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT format('function %s', pg_get_functiondef(oid)) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
ORDER BY 1
"""
_SEQUENCES = "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public'"
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"


class PostgresCluster:
    """The server; whoever asks gets a database of their own."""

    def __init__(self, binaries: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tuneloop-pg-", dir="/tmp"))
        self._as = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as:
            shutil.chown(self.folder, "postgres")
        self._binaries = binaries
        self._run("initdb", "-D", self.folder / "data", "-U", "tuneloop", "-A", "trust", "--no-sync")
        self.port = free_port()
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-w", "-o", options, "start")
        self._admin = self._connect("postgres")
        self._made = 0
        self._migrated: str | None = None
        self._schema: list[str] = []
        self._rows: dict[str, bytes] = {}  # of each table
        self._sequences: dict[str, int | None] = {}  # the last value of each that was given out
        self._idle: list[str] = []

    def new_database(self) -> str:
        """The URL of a fresh, empty database."""
        return self._url(self._new("template1"))

    def migrated_database(self) -> str:
        """The URL of a fresh database at the newest schema: a copy of one that was migrated, once a session."""
        return self._url(self._new(self._template()))

    @contextmanager
    def lent_database(self) -> Iterator[str]:
        """The URL of a database at the newest schema with nothing in it, for as long as the block lasts."""
        template = self._template()
        name = self._idle.pop() if self._idle else self._new(template)
        yield self._url(name)
        if self._is_left(name) and self._made_as_new(name):
            self._idle.append(name)
        else:
            self._admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _template(self) -> str:
        if self._migrated is None:
            migrated = self._new("template1")
            Registry.open(RegistrySettings(home=self.folder, database_url=self._url(migrated))).close()
            with self._connect(migrated) as connection:
                self._schema = [line for (line,) in connection.execute(_SCHEMA)]
                self._sequences = dict(connection.execute(_SEQUENCES).fetchall())
                tables = [name for (name,) in connection.execute(_TABLES)]
                self._rows = {table: _rows(connection, table) for table in tables}
            self._migrated = migrated
        return self._migrated

    def _is_left(self, name: str) -> bool:
        """Whether everybody who was connected has gone."""
        deadline = time.monotonic() + _LEAVE_S
        there = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
        while self._admin.execute(there, (name,)).fetchone():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def _made_as_new(self, name: str) -> bool:
        """Whether it holds what a new one would, once this is over; without, its schema is another one."""
        with self._connect(name) as connection:
            if [line for (line,) in connection.execute(_SCHEMA)] != self._schema:
                return False
            each = (f"SELECT '{table}' WHERE EXISTS (SELECT FROM {table})" for table in self._rows)  # noqa: S608 (ours)
            filled = {table for (table,) in connection.execute(" UNION ALL ".join(each))}
            other = [
                table
                for table, rows in self._rows.items()
                if (_rows(connection, table) != rows if rows else table in filled)
            ]
            connection.execute("SET session_replication_role = replica")  # the audit log would refuse it
            if other:
                connection.execute(f"TRUNCATE {', '.join(other)}")
            for table in other:
                if self._rows[table]:
                    with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                        copy.write(self._rows[table])
            for sequence, last in connection.execute(_SEQUENCES).fetchall():
                known = self._sequences[sequence]
                if known is None and last is not None:
                    connection.execute(f"ALTER SEQUENCE {sequence} RESTART")
                elif known != last:
                    connection.execute("SELECT setval(%s, %s)", (sequence, known))
        return True

    def _new(self, template: str) -> str:
        self._made += 1
        name = f"test{self._made}"
        self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://tuneloop@127.0.0.1:{self.port}/{name}"

    def _connect(self, name: str) -> psycopg.Connection[Any]:
        return psycopg.connect(host="127.0.0.1", port=self.port, user="tuneloop", dbname=name, autocommit=True)

    def stop(self) -> None:
        """End it and remove what it held."""
        self._admin.close()
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: object) -> None:
        command = [*self._as, str(self._binaries / program), *map(str, arguments)]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        if done.returncode != 0:
            log = self.folder / "log"
            raise RuntimeError(f"{program}: {done.stderr}{log.read_text() if log.exists() else ''}")


def _rows(connection: psycopg.Connection[Any], table: str) -> bytes:
    with connection.cursor().copy(f"COPY {table} TO STDOUT") as copy:
        return b"".join(bytes(block) for block in copy)
