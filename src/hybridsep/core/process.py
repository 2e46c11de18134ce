"""What a program that computes for minutes gains from telling the system; importing the library tells it nothing."""

from __future__ import annotations

import ctypes
import os
import sys

# Two "cores" are often two threads of one: a worker that spins while it waits takes the time of the one that computes, and two programs
# that spin against each other crawl. A search step is hundreds of short products, though, and waking a sleeper takes longer than many of
# them: so workers spin for some microseconds and then sleep.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}
# By default every tensor of some megabytes is handed back to the system and its pages are zeroed again at the next step: encoding three
# seconds of 48 waveforms took 4 s that way and 2 s with this. What is kept free is bounded, or training would hold several times its need.
MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = 0, 2**30, 64 * 2**20
MALLOC = {
    (-4, "MALLOC_MMAP_MAX_"): MMAP_MAX,
    (-1, "MALLOC_TRIM_THRESHOLD_"): TRIM_THRESHOLD,
    (-2, "MALLOC_TOP_PAD_"): TOP_PAD,
}


def settle_process() -> None:
    """Let threads sleep soon and glibc keep up to 1 GiB of what is freed, in this process and in those that it starts.

    To be called before torch is imported: it reads the first when it starts its threads. What the environment says already stays.
    """
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for (option, name), size in MALLOC.items():
        if name not in os.environ:
            os.environ[name] = str(size)
            mallopt(option, size)
