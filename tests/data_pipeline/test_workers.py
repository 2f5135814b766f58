import os
from types import MappingProxyType

import pytest

from data_pipeline.case import Case
from data_pipeline.conventions import CONVENTIONS
from data_pipeline.errors import InputError
from data_pipeline.workers import map_cases


def case(number: int) -> Case:
    return Case(str(number), str(number), MappingProxyType({}), None, CONVENTIONS["brats2018"], "BraTS")


def half(case: Case) -> float | str:
    """Stands in for work on a case: cases of odd numbers cannot be used."""
    number = int(case.id)
    return f"{number}: is odd" if number % 2 else number / 2


def run(numbers, workers=0, work=half, **options):
    options = {"doing": "halving", "skip_bad": False, "skip_option": "--skip-bad", "progress": False, **options}
    return map_cases(work, [case(number) for number in numbers], workers, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_given(workers):
    assert run([8, 2, 6, 4], workers) == [4, 1, 3, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_known_results_are_not_worked_out_again(workers):
    assert run([8, 3, 6, 5], workers, known={1: 30.0, 3: 50.0}) == [4, 30, 3, 50]
    assert run([3], workers, known={0: 30.0}) == [30]


def test_everything_that_is_wrong_is_listed_at_once_or_left_out(capsys):
    with pytest.raises(InputError) as caught:
        run([2, 3, 4, 5])
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("2 of 4 cases cannot be used") and "with --skip-bad:" in head
    assert lines == ["  3: is odd", "  5: is odd"]
    assert run([2, 3, 4, 5], skip_bad=True) == [1, 2]
    assert capsys.readouterr().err.splitlines() == ["left out 2 of 4 cases:", *lines]
    with pytest.raises(InputError, match="none of 2 cases can be used"):
        run([3, 5], skip_bad=True)


def end_process(case: Case) -> float:
    """As the kernel does to a process that needs too much memory."""
    os._exit(1)


def test_a_killed_worker_is_explained():
    with pytest.raises(InputError, match="halving cases was killed, most often for lack of memory; use fewer than 2"):
        run([1, 1], 2, end_process)
