"""A newcomer's way to the book is timed as it is walked."""

import json
import runpy
import subprocess

import pytest

from hybridsep.report import repository_root

MAKEFILE = """\
.venv/.installed:
	sleep 0.3
	mkdir .venv
	head -c 3000 /dev/zero > .venv/package
	ln -s package .venv/link
	touch $@
book: .venv/.installed
	sleep 0.6
	mkdir -p runs/cpu _build/executed
	head -c 500 /dev/zero > runs/cpu/model
	cp status.json _build/executed
"""


def test_every_step_of_a_fresh_clone_is_timed_and_weighed(tmp_path):
    project, clone = tmp_path / "project", tmp_path / "clone"
    project.mkdir()
    (project / "Makefile").write_text(MAKEFILE)
    (project / "status.json").write_text(json.dumps([{"chapter": "01_data", "seconds": 61.2, "status": "executed"}]))
    git = ("git", "-C", project, "-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "all")):
        subprocess.run([*git, *command], check=True)
    (project / "forgotten").write_text("x" * 100_000)
    script = runpy.run_path(str(repository_root() / "book" / "rehearsal.py"))
    made = script["rehearse"](project, clone)
    assert made["seconds"]["install"] >= 0.3 and made["seconds"]["book"] >= 0.6 and made["seconds"]["clone"] >= 0
    assert made["bytes"]["environment"] == 3000 and made["bytes"]["run"] == 500
    assert made["bytes"]["repository"] < 100_000 and made["chapters"] == {"01_data": 61.2}
    with pytest.raises(subprocess.CalledProcessError):
        script["rehearse"](project, clone)  # which is not empty any more
