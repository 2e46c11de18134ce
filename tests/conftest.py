"""Fixtures and marks that every test shares."""

import os
from pathlib import Path

import pytest

from hybridsep.core.process import settle_process

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_configure(config):
    """Settle every process of the run, as the commands do: two workers that spin for each other crawl.

    Without a GPU, Triton's kernels run in its interpreter, which has to be chosen before anything imports Triton.
    """
    settle_process()
    hands_out = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out and not has_gpu():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    """Skip what is marked `gpu` where there is none, and begin with the book, which takes longest and is built by one process."""
    items.sort(key=lambda item: "smoke" not in item.path.parts)
    if not has_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def has_gpu() -> bool:
    """Tell whether torch can use CUDA; a process that only hands out tests to others never asks, and imports no torch."""
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def chromium():
    """A running Chromium; without one the test is skipped, except in CI, where it fails."""
    if not CHROMIUM.exists():
        message = f"no browser at {CHROMIUM}; install Debian's package chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"],
        )
        yield browser
        browser.close()
