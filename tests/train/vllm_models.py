"""What vLLM's registry says of architectures, read from its source: nothing of it is imported or started."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

_TABLES = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")


def architectures(vllm: Path) -> dict[str, bool]:
    """Name → whether vLLM takes LoRA adapters for it, of all that write text; `vllm` is the package's folder."""
    registry = ast.parse((vllm / "model_executor/models/registry.py").read_text(encoding="utf-8"))
    tables = {
        target.id: ast.literal_eval(node.value)
        for node in registry.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in _TABLES
    }
    found = {}
    for name, (module, kind) in ((name, place) for table in _TABLES for name, place in tables[table].items()):
        path = module if module.startswith("vllm.") else f"vllm.model_executor.models.{module}"
        found[name] = _supports_lora(vllm.parent, path, kind)
    return found


@cache
def _supports_lora(root: Path, module: str, kind: str) -> bool:
    """Whether a class has `SupportsLoRA` among its bases, theirs included."""
    if kind == "SupportsLoRA":
        return True
    found = _names(root, module).get(kind)
    if isinstance(found, ast.ClassDef):
        return any(_supports_lora(root, module, _name_of(base)) for base in found.bases)
    return found is not None and _supports_lora(root, *found)


def _name_of(base: ast.expr) -> str:
    return ast.unparse(base).partition("[")[0]


@cache
def _names(root: Path, module: str) -> dict[str, ast.ClassDef | tuple[str, str]]:
    """What a module defines or takes from another of vLLM's: name → class, or (module, name) of where it comes from."""
    path = root.joinpath(*module.split("."))
    path, package = (
        (path / "__init__.py", module) if path.is_dir() else (path.with_suffix(".py"), module.rpartition(".")[0])
    )
    if not path.is_file():
        return {}
    found: dict[str, ast.ClassDef | tuple[str, str]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            if source.startswith("vllm") and source != module:
                found |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
    return found
