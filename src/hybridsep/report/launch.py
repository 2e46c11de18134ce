"""Notebooks that also run away from a checkout: their first cell installs the project where it is missing, as on Colab and Binder.

The address of the repository stands in `_config.yml`, as `repository.url`. After it has changed, `python -m hybridsep.report.launch` writes
it into the notebooks.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import yaml

from hybridsep.report import repository_root

INSTALL_TAG = "install"
_INSTALL = """\
# Installs the project where it is missing, as on Colab and Binder.
import importlib.util

if importlib.util.find_spec("hybridsep") is None:
    import os
    import subprocess
    import sys
    from pathlib import Path

    address = "{address}"
    here = Path.cwd().resolve()
    root = next((folder for folder in (here, *here.parents) if (folder / "_config.yml").is_file()), here / "hybridsep")
    if not root.is_dir():
        if not address:
            raise RuntimeError("hybridsep is not installed, and this notebook knows no address to fetch it from: open it in a clone of the repository")
        subprocess.run(["git", "clone", "--depth", "1", address, str(root)], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", str(root), "myst-nb", "ipywidgets"], check=True)
    importlib.invalidate_caches()
    os.environ["HYBRIDSEP_ROOT"] = str(root)"""


def repository_address(root: Path) -> str:
    """Public address of the repository, empty while it has none."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return config.get("repository", {}).get("url") or ""


def install_cell(address: str) -> str:
    """Source of the cell that installs the project from a checkout around the notebook, else from `address`."""
    return _INSTALL.format(address=address)


def write_install_cells(root: Path) -> None:
    """Make the install cell the first cell of every chapter of a repository."""
    source = install_cell(repository_address(root))
    for path in sorted((root / "book").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        others = [cell for cell in notebook.cells if INSTALL_TAG not in cell.metadata.get("tags", [])]
        cell = nbformat.v4.new_code_cell(source, id=INSTALL_TAG, metadata={"tags": [INSTALL_TAG, "remove-cell"]})
        notebook.cells = [cell, *others]
        nbformat.write(notebook, path)


if __name__ == "__main__":
    write_install_cells(repository_root())
