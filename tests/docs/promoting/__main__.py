"""Write the outputs of a new run into docs/promoting.md: `PYTHONPATH=tests .venv/bin/python -m docs.promoting`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from docs.promoting.held import renewed
from docs.promoting.story import PAGE, told


def main() -> None:
    with TemporaryDirectory() as folder:
        story = told(Path(folder))
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), story.printed, story.asked), encoding="utf-8")


if __name__ == "__main__":
    main()
