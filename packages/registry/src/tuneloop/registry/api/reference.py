"""The control plane's reference, made from the code: `python -m tuneloop.registry.api.reference FOLDER` writes it.

`openapi.json` is what a running control plane serves; `control-plane.md` is for people: roles, operations, problems.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tuneloop.registry.access.roles import MEANINGS, ROLES, Permission, Role
from tuneloop.registry.api.app import ROUTERS, routed
from tuneloop.registry.api.openapi import operations, permission_of
from tuneloop.registry.api.parity import NOT_SERVED, OF_OTHERS, OF_OTHERS_NOT_SERVED, SERVED
from tuneloop.registry.api.problems import STATUS
from tuneloop.registry.files import write_atomically

_HEAD = """\
# The control plane, operation by operation

Made from the code by `python -m tuneloop.registry.api.reference docs/reference`; do not edit it by hand. Every field
and every status stands in [openapi.json](openapi.json); how it is used, in [the control plane](../control-plane.md).
"""


def openapi_json() -> str:
    """The OpenAPI document."""
    return json.dumps(routed().openapi(), indent=1, ensure_ascii=False) + "\n"


def roles() -> list[str]:
    """Who may do what, as the lines of a Markdown table."""
    lines = ["| permission | " + " | ".join(Role) + " | |", "|---|" + "---|" * (len(Role) + 1)]
    for permission in Permission:
        held = " | ".join("yes" if permission in ROLES[role] else "" for role in Role)
        lines.append(f"| `{permission}` | {held} | {MEANINGS[permission]} |")
    return lines


def verbs() -> list[str]:
    """Which operation serves which verb, as the lines of a Markdown table."""
    lines = ["| verb | operations |", "|---|---|"]
    served = SERVED | OF_OTHERS
    lines += [f"| `{verb}` | {', '.join(f'`{name}`' for name in names)} |" for verb, names in served.items()]
    return lines + [f"| `{verb}` | none: {why} |" for verb, why in (NOT_SERVED | OF_OTHERS_NOT_SERVED).items()]


def page() -> str:
    """Roles, operations, verbs and problems as Markdown."""
    listed = ["| operation | | needs | |", "|---|---|---|---|"]
    for method, path, route in operations(ROUTERS):
        needed = permission_of(route)
        said = (route.description or "").partition("\n")[0]
        listed.append(f"| `{route.name}` | `{method.upper()} {path}` | {f'`{needed}`' if needed else ''} | {said} |")
    problems = ["| `type` ends with | status | |", "|---|---|---|"]
    problems += [f"| `{kind}` | {status} | {title} |" for kind, (status, title) in STATUS.items()]
    parts = [("Roles", roles()), ("Operations", listed), ("Verbs", verbs()), ("Problems", problems)]
    return _HEAD + "".join(f"\n## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts)


def main(folder: Path) -> None:
    """Write both files."""
    write_atomically(folder / "openapi.json", openapi_json().encode())
    write_atomically(folder / "control-plane.md", page().encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
