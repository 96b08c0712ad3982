"""A gateway machine has no training stack, and its process pays for nothing it does not use."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_gateway_pulls_in_neither_mlflow_nor_torch_nor_spacy() -> None:
    code = (
        "import sys, tuneloop.serve.gateway.app, tuneloop.serve.gateway.server\n"
        "heavy = {'mlflow', 'torch', 'transformers', 'spacy', 'presidio_analyzer', 'vllm'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_verb_costs_no_more_than_click() -> None:
    code = (
        "import sys, tuneloop.serve.gateway.verb\n"
        "print(sorted({'fastapi', 'aiohttp', 'uvicorn', 'sqlalchemy', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
