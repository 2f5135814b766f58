"""How many processes are of use."""

import os


def available_cores() -> int:
    """Cores this process may use, which in a cluster's job are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
