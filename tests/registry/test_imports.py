"""Who needs the registry's nouns and errors alone, such as each process of a fit, does not pay for a database."""

from __future__ import annotations

import subprocess
import sys


def test_nouns_and_errors_bring_no_database_and_the_registry_is_still_there() -> None:
    code = (
        "import sys, tuneloop.registry.errors, tuneloop.registry.nouns\n"
        "print(sorted({'sqlalchemy', 'alembic', 'mlflow'} & sys.modules.keys()))\n"
        "from tuneloop.registry import Registry\n"
        "print(Registry.__name__, hasattr(sys.modules['tuneloop.registry'], 'nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "Registry False"]
