import os
import socket
import subprocess
import sys

import pytest

from data_pipeline import owner
from data_pipeline.owner import is_dead, this_process


def of_another() -> subprocess.Popen:
    code = "from data_pipeline.owner import this_process; print(this_process(), flush=True); input()"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_process_is_dead_when_it_has_ended():
    other = of_another()
    name = other.stdout.readline().strip()
    assert not is_dead(name)
    assert not is_dead(this_process())
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(name)  # also while nobody has asked how it ended
    other.communicate()
    assert is_dead(name)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_later_process_with_the_same_number_is_another():
    host, pid, start = this_process().split("-")
    assert is_dead(f"{host}-{pid}-{int(start) + 1}")


def test_nothing_is_known_of_other_hosts(monkeypatch):
    dead = f"{owner._host()}-{2**22 + 1}-0"  # above the largest number of a process
    assert is_dead(dead)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert not is_dead(dead)
