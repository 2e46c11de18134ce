"""The command line in this process."""

import contextlib
import io
import sys
import warnings
from unittest.mock import patch

from hybridsep import cli


def run(*args) -> tuple[int, str, str]:
    """Run `hybridsep ARGS`: exit status, standard output, standard error. Anything but an exit would be a traceback."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        patch.object(sys, "argv", ["hybridsep", *map(str, args)]),
    ):
        warnings.simplefilter("always")
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
    return status, out.getvalue(), err.getvalue()


def lines_of(err: str, bar: str = "separating") -> list[str]:
    """What standard error says, without the progress bar of that label, which may have run before."""
    return [line for line in err.splitlines() if line.strip() and not line.startswith(bar)]
