"""The records of trained models go into the package; everything else is said in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECORDS = Path("book", "record")


class BuildWithRecords(build_py):
    """Copies book/record into the package that is built; a checkout that is installed in place has it where it is."""

    def run(self) -> None:
        """See build_py."""
        super().run()
        if RECORDS.is_dir() and not self.editable_mode:
            target = Path(self.build_lib, "hybridsep", "recorded")
            shutil.rmtree(target, ignore_errors=True)  # what an earlier build left
            shutil.copytree(RECORDS, target)


setup(cmdclass={"build_py": BuildWithRecords})
