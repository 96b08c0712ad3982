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


@pytest.mark.parametrize(
    "text",
    [
        "It began at 30.11.2026 14:15, they say.",
        "[1974-04-27T03:30:40.064441] began",
        "at 2005-06-28 08:45:16,895393 UTC",
        "at 14:24:02.547890",
        "It stands at -19.0961975, 37.386914.",
        "id 9615a32e-71b5-4f55-819e-038721858664",
        "EAN 0855090837346",
        "ISBN 0-306-40615-2, ISSN 2434-561X",
        "latitude: 52.5200066",
        "It runs v4.12.2125550187 now.",
        "release 212.555.0187",
    ],
)
def test_times_versions_and_places_are_no_telephone_numbers(text: str) -> None:
    assert redact(text).text == text


@pytest.mark.parametrize(
    "said", ["+44.2079460958", "+1.7035550187", "ISBN 212-555-0187", "+49.1712345678 or 52.5200066, 13.404954"]
)
def test_a_number_in_the_form_of_something_else_is_found_where_it_is_none_of_that(said: str) -> None:
    assert "<PHONE_NUMBER>" in redact(said).text


@pytest.mark.parametrize(
    "said", ["{}, 2026-11-30 14:15:59", "2026-11-30T14:15, and {}", "10.1.2.3 or {}", "v2.1: {}", "{}"]
)
@pytest.mark.parametrize("number", ["212-555-0187", "+49 30 12345678", "1.800.555.0199", "030 12345678", "2125550187"])
def test_a_telephone_number_beside_them_is_one_still(said: str, number: str) -> None:
    assert redact(said.format(number)).text == said.format("<PHONE_NUMBER>").replace("10.1.2.3", "<IP_ADDRESS>")


@pytest.mark.parametrize("number", ["020 7946 0958", "01 23 45 67 89"])
def test_british_and_french_numbers_are_found_without_their_countrys_code(number: str) -> None:
    assert redact(f"Call {number}!").text == "Call <PHONE_NUMBER>!"


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
