"""On what and with what a figure was made."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = (
    "hybridsep torch torchaudio accelerate numpy scipy librosa museval symusic pretty_midi jupyter-book papermill"
)


def provenance(device: torch.device, processes: int = 1) -> dict:
    """Hardware, number of processes that computed together, package versions and git commit, as plain JSON values."""
    packages = {}
    for name in PACKAGES.split():
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        **({"processes": processes} if processes > 1 else {}),
        "python": platform.python_version(),
        "packages": packages,
        "commit": commit(),
    }


def hardware(device: torch.device) -> str:
    """One line that names the processor that computed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, no GPU"


def commit(folder: Path = Path(__file__).parent) -> str:
    """Short hash of the commit that is checked out around a folder, with '+' when files differ from it; 'unknown' outside a repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
