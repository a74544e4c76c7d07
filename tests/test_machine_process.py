"""What is said to people when the process of a machine ends, and why it did."""

from __future__ import annotations

import signal

import pytest

from kalavai_nb.lending.child import _how, last_words


@pytest.mark.parametrize(
    ("returncode", "has_head", "words"),
    [
        (0, True, "the head of the pool, which it had, was gone"),
        (0, False, "it was told to"),
        (-signal.SIGKILL, False, "it was killed, by somebody or by the system"),
        (-signal.SIGTERM, True, "it was ended by SIGTERM"),
        # a signal of real time, which has no name
        (-50, True, "it was ended by signal 50"),
        (1, True, "it failed (status 1)"),
    ],
)
def test_why_it_ended_is_said_in_words(returncode: int, has_head: bool, words: str) -> None:
    assert _how(returncode, has_head).startswith(words)


def test_of_its_log_the_last_line_that_tells_of_a_fault_is_shown() -> None:
    fine = "2026-11-02 10:00:00,123 - distributed.core - INFO - Starting established connection to tls://127.0.0.1:1\n"
    wrong = "2026-11-02 10:00:01,123 - distributed.worker - ERROR - no space left on device\n"
    assert last_words(fine + wrong + fine) == "no space left on device"
    assert last_words("Traceback (most recent call last):\n  File\nImportError: no torch\n\n" + fine) == (
        "ImportError: no torch"
    )
    assert last_words(fine) == last_words("") == ""
