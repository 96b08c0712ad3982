"""Redaction: what identifies a person goes, what a programmer writes stays.

Presidio is imported once, for about 2 s.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tuneloop.registry.redaction import redact


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to jane.doe@example.org, please.", "Write to <EMAIL_ADDRESS>, please."),
        ("Call +44 20 7946 0958 or wait.", "Call <PHONE_NUMBER> or wait."),
        ("My card 4111 1111 1111 1111 fails.", "My card <CREDIT_CARD> fails."),
        ("IBAN DE89370400440532013000.", "IBAN <IBAN_CODE>."),
        ("It came from 192.168.17.4 again.", "It came from <IP_ADDRESS> again."),
    ],
)
def test_what_identifies_somebody_is_replaced_by_its_kind(text: str, clean: str) -> None:
    assert redact(text).text == clean


@pytest.mark.parametrize(
    "text",
    [
        "What does numpy.linalg.norm do?",
        "Why does os.path.join(a, b) drop a?",
        "I use Python 3.11.7 and numpy 2.3.5.",
        "torch==2.13.0 needs CUDA 12.8",
        "It takes 100000 steps and 0.000125 s each.",
        "On 2026-11-01 at 12:30 it stopped.",
        "print(f'{x:>10}')  # column 10",
        "",
    ],
)
def test_what_a_programmer_writes_stays(text: str) -> None:
    found = redact(text)
    assert (found.text, found.found) == (text, {})


def test_finds_are_counted_by_kind_and_the_rest_of_the_text_stays() -> None:
    found = redact("a@example.org wrote to b@example.com and c@example.net from 10.1.2.3: zoë said «no».")
    assert (
        found.text == "<EMAIL_ADDRESS> wrote to <EMAIL_ADDRESS> and <EMAIL_ADDRESS> from <IP_ADDRESS>: zoë said «no»."
    )
    assert found.found == {"EMAIL_ADDRESS": 3, "IP_ADDRESS": 1}


def test_redacting_again_changes_nothing() -> None:
    once = redact("Write to jane.doe@example.org or +44 20 7946 0958 from 192.168.17.4.").text
    assert redact(once).text == once


def test_who_redacts_does_not_load_torch_and_may_still_do_so_later() -> None:
    program = (
        "import sys\n"
        "from tuneloop.registry.redaction import redact\n"
        "assert redact('jane.doe@example.org').found == {'EMAIL_ADDRESS': 1}\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "import torch, transformers\n"
        "assert redact('jane.doe@example.org').found == {'EMAIL_ADDRESS': 1}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
