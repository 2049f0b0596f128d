"""Processes that answer questions: order, failures and ends. Few of them, because each takes seconds to start."""

from __future__ import annotations

import psutil
import pytest

from helpers.crews import begin
from helpers.peak import has_mark
from stages.common.machine import peaks_of_workers, reset_peak_memory
from stages.errors import UserError
from stages.processes.crew import Crew


def test_answers_come_in_the_order_of_the_questions_from_all_processes() -> None:
    with Crew(2, "cpu", begin, 10) as crew:
        found = list(crew.answers(range(1, 12)))
        assert list(crew.answers([])) == []
    assert [answer for answer, _ in found] == list(range(10, 120, 10))
    processes = {process for _, process in found}
    assert len(processes) == 2
    assert not [process for process in processes if psutil.pid_exists(process)]


@has_mark
def test_each_process_reports_its_own_peak_memory() -> None:
    reset_peak_memory()
    assert not peaks_of_workers()
    with Crew(2, "cpu", begin, 10) as crew:
        list(crew.answers(range(1, 12)))
    found = peaks_of_workers()
    assert list(found) == [0, 1]
    # Each has imported torch, and no more.
    assert all(2**26 < (peak.memory_bytes or 0) < 2**32 for peak in found.values())


@pytest.mark.parametrize(("question", "message"), [(13, "13 brings no luck"), (0, "was ended from outside")])
def test_a_failure_is_one_error_after_the_answers_before_it(question: int, message: str) -> None:
    with Crew(2, "cpu", begin, 1) as crew, pytest.raises(UserError, match=message):
        list(crew.answers([1, 2, question, 3]))
