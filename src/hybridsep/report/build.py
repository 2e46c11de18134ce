"""From chapters without outputs to a web site: execute with papermill, then typeset with jupyter-book."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
import papermill
import yaml
from ipykernel.kernelspec import write_kernel_spec
from papermill.exceptions import PapermillExecutionError
from sphinx_external_toc.parsing import parse_toc_yaml
from tqdm import tqdm

import hybridsep
from hybridsep.core.errors import HybridsepError
from hybridsep.report.api import fill_stubs
from hybridsep.report.templates import render

KERNEL_NAME = "hybridsep-book"
MAX_PAGE_BYTES = 4_000_000
MAX_SITE_BYTES = 60_000_000


class BookError(HybridsepError):
    """The book could not be built; the message names the chapter and what went wrong in it."""


def build_book(profile: str, root: Path, runs: Path | None = None, anew: bool = False) -> Path:
    """Execute every chapter with a profile, typeset the site, and return its `index.html`.

    The repository root has `_config.yml`, `_toc.yml` and `book/`; models and results are in `runs`, default `root/runs`, and `anew` trains those
    that come with the project. BookError: a chapter failed, or typesetting met a warning. What an earlier build left stays as it was.
    """
    execute_book(profile, root, runs, anew)
    return build_html(root)


def execute_book(profile: str, root: Path, runs: Path | None = None, anew: bool = False) -> Path:
    """Execute the chapters of `_toc.yml` in order, the landing page last, and return `_build/executed`; BookError: one failed.

    Each chapter runs in `book/` of a copy, with HYBRIDSEP_ROOT, HYBRIDSEP_RUNS and HYBRIDSEP_TRAIN in its environment.
    While it runs the copy is called `_build/executing`; it gets its final name only when every chapter succeeded. `status.json` beside the
    copy's `book/` lists the chapters so far: [{"chapter", "seconds", "status"}], status one of executed, failed, waiting.
    """
    root, runs = root.resolve(), (runs or root / "runs").resolve()
    working, executed = (root / "_build" / name for name in ("executing", "executed"))
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    shutil.copytree(root / "book", working / "book", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "record"))
    shutil.copy(root / "_toc.yml", working)
    # Pages link to the library's source; Sphinx copies the files that are linked.
    (working / "src").mkdir()
    (working / "src" / "hybridsep").symlink_to(Path(hybridsep.__file__).parent)
    fill_stubs(working / "book")

    landing, *others = _pages(working)
    chapters = [page for page in (*others, landing) if page.suffix == ".ipynb"]
    status = [{"chapter": page.stem, "seconds": None, "status": "waiting"} for page in chapters]
    told = {"HYBRIDSEP_ROOT": str(root), "HYBRIDSEP_RUNS": str(runs), "HYBRIDSEP_TRAIN": "1" if anew else ""}
    with patch.dict(os.environ, told):  # kernels inherit it
        for chapter, entry in (bar := tqdm(list(zip(chapters, status, strict=True)), unit="chapter")):
            bar.set_description(chapter.stem)
            started = time.perf_counter()
            entry["status"] = "failed"
            try:
                execute_notebook(chapter, chapter, {"profile": profile})
                entry["status"] = "executed"
            finally:
                entry["seconds"] = round(time.perf_counter() - started, 1)
                (working / "status.json").write_text(json.dumps(status, indent=2) + "\n", encoding="utf-8")

    shutil.rmtree(executed, ignore_errors=True)
    working.rename(executed)
    return executed


def execute_notebook(path: Path, out: Path, parameters: dict[str, Any]) -> None:
    """Execute a notebook with this interpreter in the folder of `out`, which may be `path` itself and is written when a cell fails, too.

    BookError: a cell raised, or there is no cell tagged `parameters`, whose names get these values.
    """
    notebook = nbformat.read(path, as_version=4)
    if not any("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells):
        raise BookError(f"chapter {path.stem}: no cell is tagged 'parameters'; add one that sets {sorted(parameters)}")
    # What cells write to stderr are progress bars: good on a terminal, noise in a log.
    shown = sys.stderr if sys.stderr.isatty() else None
    try:
        with _kernel():
            options = {"kernel_name": KERNEL_NAME, "language": "python", "progress_bar": False, "stderr_file": shown}
            papermill.execute_notebook(path, out, parameters, cwd=out.parent, **options)
    except PapermillExecutionError as error:
        text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        line = re.search(r"^\s*(---->.*)$", text, re.MULTILINE)  # that raised, as IPython marks it
        what = f"{error.ename}: {error.evalue}" + (f"\n  {line[1].rstrip()}" if line else "")
        raise BookError(f"chapter {path.stem}, cell {error.cell_index + 1}: {what}") from None
    except (RuntimeError, OSError) as error:  # a killed kernel, a full disk
        raise BookError(f"chapter {path.stem}: {error}") from error
    _hide_parameters(out)


def build_html(root: Path) -> Path:
    """Typeset `_build/executed` into `_build/html`, return its `index.html`; BookError: a warning or a heavy site; the previous one is kept."""
    root = root.resolve()
    executed, site = root / "_build" / "executed", root / "_build" / "html"
    with tempfile.TemporaryDirectory(dir=root / "_build", prefix="typeset-") as scratch:
        config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
        if not config["repository"]["url"]:  # launch buttons would lead nowhere
            config.pop("launch_buttons", None)
        (Path(scratch) / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        # --all, since a page that is reused from an earlier build would hide its warnings.
        options = "-W --keep-going -n --all --quiet".split()
        places = ["--config", f"{scratch}/_config.yml", "--path-output", scratch, str(executed)]
        command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", *options, *places]
        # Its closing message on stdout names the scratch folder; its warnings come on stderr.
        result = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True)
        if result.returncode:
            sys.stderr.write(result.stdout)
            raise BookError("jupyter-book refused the book; its warnings are above")
        typeset = Path(scratch) / "_build" / "html"
        _add_mathjax(typeset)
        # The bare tag that jupyter-book leaves here names no icon, so a browser would ask for one that is not there.
        target = f"{parse_toc_yaml(executed / '_toc.yml').root.docname}.html"
        (typeset / "index.html").write_text(render("front.html", target=target), encoding="utf-8")
        _check_weight(typeset)
        shutil.rmtree(site, ignore_errors=True)
        typeset.rename(site)
    return site / "index.html"


def _pages(folder: Path) -> list[Path]:
    """Return the source files of the pages in `_toc.yml`, in reading order."""
    pages = []
    for name in parse_toc_yaml(folder / "_toc.yml"):
        found = [page for page in (folder / f"{name}.ipynb", folder / f"{name}.md") if page.is_file()]
        if not found:
            raise BookError(f"_toc.yml names {name}, but there is neither {name}.ipynb nor {name}.md")
        pages.append(found[0])
    return pages


@contextmanager
def _kernel() -> Iterator[None]:
    """Offer Jupyter a kernel that is this very interpreter, whatever kernels are installed or named in notebooks."""
    with tempfile.TemporaryDirectory(prefix="hybridsep-kernel-") as folder:
        # Its warning about unencrypted local connections would stand above every chapter.
        write_kernel_spec(Path(folder) / "kernels" / KERNEL_NAME, {"metadata": {}}, ["--log-level=ERROR"])
        path = os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")]))
        with patch.dict(os.environ, JUPYTER_PATH=path):
            yield


def _hide_parameters(path: Path) -> None:
    """Keep the cells that only carry the build's settings off the page."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if {"parameters", "injected-parameters"} & set(tags) and "remove-cell" not in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
    # Whoever downloads the notebook has no kernel of the build's name.
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def _check_weight(site: Path) -> None:
    """Refuse what a reader would wait for."""
    sizes = {path.relative_to(site).as_posix(): path.stat().st_size for path in site.rglob("*") if path.is_file()}
    if heavy := {name: size for name, size in sizes.items() if name.endswith(".html") and size > MAX_PAGE_BYTES}:
        raise BookError(f"pages over {MAX_PAGE_BYTES} bytes: {heavy}; use fewer or shorter sounds")
    if sum(sizes.values()) > MAX_SITE_BYTES:
        raise BookError(f"the site has {sum(sizes.values())} bytes, more than {MAX_SITE_BYTES}")


def _add_mathjax(site: Path) -> None:
    """Give the site its own MathJax, so that formulas need no network.

    The package sphinx-mathjax-offline as a Sphinx extension would insist on web fonts and 24 MB; these parts do.
    """
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise BookError("the package sphinx-mathjax-offline is missing; install requirements.txt")
    source, target = Path(package.origin).parent / "static" / "mathjax", site / "_static" / "mathjax"
    target.mkdir()
    shutil.copy(source / "tex-svg.js", target)
    for part in ("input", "a11y", "sre", "ui"):  # loaded on demand: rare TeX packages, the menu, screen readers
        shutil.copytree(source / part, target / part)
