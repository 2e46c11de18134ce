"""A newcomer's way to the book is timed as it is walked."""

import json
import shutil
import subprocess
import sys

import pytest

from hybridsep.core.errors import HybridsepError
from hybridsep.report import repository_root
from hybridsep.report.readme import write_rehearsal
from hybridsep.report.rehearsal import RESULT, folder_size, rehearse

MAKEFILE = """\
.venv/.installed:
	sleep 0.3
	mkdir .venv
	head -c 3000 /dev/zero > .venv/package
	ln -s package .venv/link
	touch $@
book: .venv/.installed
	sleep 0.6
	mkdir -p runs/$(PROFILE) _build/executed
	head -c 500 /dev/zero > runs/$(PROFILE)/model
	cp status.json _build/executed
test: .venv/.installed
	sleep 0.1
"""
STATUS = [
    {"chapter": "01_data", "seconds": 61.2, "status": "executed"},
    {"chapter": "07_search", "seconds": 130.0, "status": "executed"},
]


@pytest.fixture
def project(tmp_path):
    """A repository whose Makefile sleeps; a file that was never committed lies in it."""
    folder = tmp_path / "project"
    (folder / "book").mkdir(parents=True)
    for name, content in {
        "Makefile": MAKEFILE,
        "status.json": json.dumps(STATUS),
        "_config.yml": "",
        "book/page.ipynb": "{}",
    }.items():
        (folder / name).write_text(content)
    for command in (
        ("init", "-q"),
        ("add", "."),
        ("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", "all"),
    ):
        subprocess.run(["git", "-C", folder, *command], check=True)
    (folder / "forgotten").write_text("x" * 100_000)
    return folder


def head(folder):
    return subprocess.run(
        ["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_every_step_of_a_fresh_clone_is_timed_and_weighed(project, tmp_path):
    made = rehearse(project, tmp_path / "clone", tests=True)
    assert json.loads((project / RESULT).read_text()) == made
    assert list(made["seconds"]) == ["clone", "install", "book", "test"]
    assert (
        made["seconds"]["install"] >= 0.3
        and made["seconds"]["book"] >= 0.6
        and made["seconds"]["test"] >= 0.1
        and made["seconds"]["clone"] >= 0
    )
    assert (
        made["bytes"]["environment"] == 3000 and made["bytes"]["run"] == 500 and made["bytes"]["repository"] < 100_000
    )
    assert (
        made["chapters"] == {"01_data": 61.2, "07_search": 130.0}
        and made["commit"] == head(project)
        and made["profile"] == "cpu"
    )
    assert not (tmp_path / "clone" / "forgotten").exists()


def test_a_step_that_fails_is_named_and_leaves_no_result(project, tmp_path):
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "song.wav").touch()
    with pytest.raises(HybridsepError, match="clone is not empty"):
        rehearse(project, tmp_path / "clone")
    (project / "Makefile").write_text(MAKEFILE.replace("sleep 0.6", "false"))
    subprocess.run(
        ["git", "-C", project, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-aqm", "broken"],
        check=True,
    )
    with pytest.raises(HybridsepError, match="book PROFILE=cpu` ended with status 2"):
        rehearse(project, tmp_path / "other")
    assert not (project / RESULT).exists()


def test_the_command_rehearses_the_checkout_around_it(project, tmp_path, monkeypatch):
    monkeypatch.delenv("HYBRIDSEP_ROOT", raising=False)
    command = [sys.executable, "-m", "hybridsep.report.rehearsal", str(tmp_path / "clone"), "--profile", "smoke"]
    subprocess.run(command, cwd=project, check=True)
    assert (
        json.loads((project / RESULT).read_text())["profile"] == "smoke"
        and folder_size(tmp_path / "clone" / "runs" / "smoke") == 500
    )
    again = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and again.stderr.strip().startswith("hybridsep: ") and "Traceback" not in again.stderr


def test_readme_says_what_the_rehearsal_took(tmp_path):
    shutil.copy(repository_root() / "README.md", tmp_path)
    write_rehearsal(tmp_path)
    assert "was not done yet" in (tmp_path / "README.md").read_text()
    (tmp_path / RESULT).parent.mkdir(parents=True)
    made = {"hardware": "a lathe", "date": "2030-01-02", "commit": "abc1234", "profile": "cpu", "seconds": {"clone": 4.0, "install": 120.0, "book": 480.0},
            "bytes": {"repository": 31.4e6, "environment": 5.96e9, "run": 1.52e9}, "chapters": {"01_data": 61.2, "07_search": 130.0}}  # fmt: skip
    (tmp_path / RESULT).write_text(json.dumps(made))
    write_rehearsal(tmp_path)
    block = (tmp_path / "README.md").read_text().split("<!-- rehearsal -->")[1].split("<!-- /rehearsal -->")[0]
    for words in (
        "the clone 4 s, installation 2.0 min, `make book` 8.0 min, together 10.1 min",
        "`07_search`, 2.2 min",
        "31 MB",
        "6.0 GB",
        "1.5 GB",
        "2030-01-02",
        "abc1234",
        "a lathe",
    ):
        assert words in block, words
    assert "`make test`" not in block


def test_readme_is_written_from_the_recorded_rehearsal(tmp_path):
    root = repository_root()
    shutil.copy(root / "README.md", tmp_path)
    if (root / RESULT).is_file():
        (tmp_path / RESULT).parent.mkdir(parents=True)
        shutil.copy(root / RESULT, tmp_path / RESULT)
    write_rehearsal(tmp_path)
    assert (tmp_path / "README.md").read_text() == (root / "README.md").read_text(), (
        "run: python -m hybridsep.report.readme cpu"
    )
