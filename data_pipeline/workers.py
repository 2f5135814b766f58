"""Worker processes: how many to use, and one task for every case of a data set."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import MappingProxyType
from typing import Any, TypeVar

from tqdm import tqdm

from data_pipeline.case import Case
from data_pipeline.errors import InputError

T = TypeVar("T")


def available_cores() -> int:
    """Cores this process may use, which in a cluster's job are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_cases(
    work: Callable[[Case], T | str],
    cases: Sequence[Case],
    workers: int,
    *,
    doing: str,
    skip_bad: bool,
    skip_option: str,
    progress: bool,
    known: Mapping[int, T] = MappingProxyType({}),
) -> list[T]:
    """The results of `work` for all usable cases, in the order given.

    Args:
      work: returns the result for a case or, in one line, the problem with its files; an exception ends
        everything. Must pickle.
      cases: from `layouts.find.find_cases`.
      workers: processes; 0 or 1 works in this one.
      doing: the work in a word, as in "preparing"; for display.
      skip_bad: print the cases that cannot be used to stderr and go on without them.
      skip_option: the command's option for that; for display.
      progress: show a progress bar.
      known: results that exist already, by index of the case; these cases are not worked on.

    Raises:
      InputError: some cases cannot be used, all listed at once, one per line; no case is left; a process was killed.
    """
    if workers < 0:
        raise InputError(f"workers {workers}: expected 0 ({doing} in this process) or the number of processes")
    outcomes: dict[int, T | str] = dict(known)
    to_do = {index: case for index, case in enumerate(cases) if index not in known}
    name = f"{doing.capitalize()} cases"
    with tqdm(total=len(cases), initial=len(known), desc=name, unit="case", disable=not progress) as bar:
        for index, outcome in _run(work, to_do, workers, doing):
            outcomes[index] = outcome
            bar.update()
    ordered = [outcomes[index] for index in range(len(cases))]
    _require_usable(
        [outcome for outcome in ordered if isinstance(outcome, str)], len(cases), skip_option, skip_bad=skip_bad
    )
    usable = [outcome for outcome in ordered if not isinstance(outcome, str)]
    if not usable:
        raise InputError(f"none of {len(cases)} cases can be used; repair them, or give a folder with other cases")
    return usable


def _require_usable(problems: list[str], total: int, skip_option: str, *, skip_bad: bool) -> None:
    """Raise with all problems at once, so that a person repairs a data set in one go; or print them."""
    if not problems:
        return
    lines = "".join(f"\n  {problem}" for problem in problems)
    if not skip_bad:
        raise InputError(
            f"{len(problems)} of {total} cases cannot be used; repair them (kd-jax check says how), or leave "
            f"them out with {skip_option}:{lines}"
        )
    print(f"left out {len(problems)} of {total} cases:{lines}", file=sys.stderr)


def _run(
    work: Callable[[Case], T | str], cases: Mapping[int, Case], workers: int, doing: str
) -> Iterator[tuple[int, T | str]]:
    """(index, outcome) as cases finish. Processes are spawned: forking after JAX started can deadlock."""
    if workers <= 1 or not cases:
        yield from ((index, work(case)) for index, case in cases.items())
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(workers, len(cases)), mp_context=context, initializer=_end_with_parent)
    try:
        futures: dict[Future[T | str], int] = {executor.submit(work, case): index for index, case in cases.items()}
        yield from ((futures[future], future.result()) for future in as_completed(futures))
    except BrokenProcessPool as error:
        raise InputError(
            f"a process {doing} cases was killed, most often for lack of memory; use fewer than {workers} workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Without this, a process whose parent was killed would finish its case and then wait for ever."""
    threading.Thread(target=_wait_for_end, args=(multiprocessing.parent_process(),), daemon=True).start()


def _wait_for_end(parent: Any) -> None:
    parent.join()
    os._exit(1)
