"""What a program that computes for minutes gains from telling the system; importing the library tells it nothing."""

import ctypes
import os
import sys

# Two "cores" are often two threads of one: a worker that spins while it waits takes the time of the one that computes, and two programs
# that spin against each other crawl. A search step is hundreds of short products, though, and waking a sleeper takes longer than many of
# them: so workers spin for some microseconds and then sleep.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}
# By default every tensor of some megabytes is handed back to the system and its pages are zeroed again at the next step: encoding three
# seconds of 48 waveforms took 1.7 s of processor time that way and 0.75 s with this. Larger blocks still go back at once: kept as well, they
# saved another 0.1 s, but songs of all lengths, encoded one after the other, left 3.5 GB of holes between them instead of 1.7 GB in all.
MALLOC = {
    (-3, "MALLOC_MMAP_THRESHOLD_"): 64 * 2**20,
    (-1, "MALLOC_TRIM_THRESHOLD_"): 256 * 2**20,
    (-2, "MALLOC_TOP_PAD_"): 64 * 2**20,
}


def settle_process() -> None:
    """Let threads sleep soon and glibc keep what is freed in blocks of up to 64 MiB, in this process and in those that it starts.

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
