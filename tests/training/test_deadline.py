"""Work stops when its time is up, whole, and goes on later to the same results."""

import json
import shutil

import pandas as pd
import pytest
import torch
from command import run
from micro import micro_profile
from tiny import seeded, tiny_prior

from hybridsep.core.deadline import NEVER, Deadline, OutOfTime
from hybridsep.data.codes import CodeSet
from hybridsep.training.loop import train
from hybridsep.training.prior import PriorTask


def test_deadline_passes_after_its_minutes_and_never_without_any(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    deadline = Deadline(2.0, started=100.0)
    now[0] += 119.0
    assert not deadline.passed
    now[0] += 2.0
    assert deadline.passed and not NEVER.passed


def test_training_out_of_time_stops_after_one_step_at_least_and_goes_on_to_the_same_weights(tmp_path):
    songs = (torch.randint(12, (2, 90), generator=seeded()).to(torch.int16),)

    def trained(folder, deadline):
        module = tiny_prior()
        train(
            PriorTask(module, CodeSet(songs), 1, torch.float32),
            module.settings.training,
            folder,
            "prior bass",
            0,
            deadline,
        )
        return module

    for step in range(1, 4):
        with pytest.raises(OutOfTime) as stop:
            trained(tmp_path / "often", Deadline(0.0))
        said = str(stop.value)
        assert (
            f"prior bass: time is up, stopped after step {step} of 4 ({step / 4:.0%})" in said
            and "Run the same command again" in said
            and "\n" not in said
        )
    last, whole = trained(tmp_path / "often", Deadline(0.0)), trained(tmp_path / "whole", NEVER)
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), whole.parameters(), strict=True))


def test_command_out_of_time_says_one_line_marks_nothing_done_and_goes_on_by_itself(tmp_path):
    profile = micro_profile(tmp_path, {"vqvae": {"training": {"steps": 3}}, "prior": {"training": {"steps": 2}}})

    def command(folder, *options):
        status, out, _ = run("train", "plain-sum", "--profile", profile, "--runs", folder, *options)
        return status, out.splitlines()

    unfinished, said = [], []
    for _ in range(20):
        status, lines = command(tmp_path / "often", "--max-minutes", "0")
        assert status == 0 and len(lines) == 1
        said += lines
        if lines[0].startswith("model in"):
            break
        assert "Run the same command again to go on" in lines[0]
        unfinished += [
            p.parent.name
            for p in (tmp_path / "often").rglob("checkpoint.safetensors")
            if (p.parent / "done.json").exists()
        ]
    assert said[-1].startswith("model in") and not unfinished and any("step 2 of 3 (67%)" in line for line in said)
    stems_of = next((tmp_path / "often" / "micro").glob("stems-*"))
    shutil.copytree(stems_of, tmp_path / "once" / "micro" / stems_of.name)
    assert command(tmp_path / "once")[0] == 0
    files = sorted(p.relative_to(tmp_path / "once") for p in (tmp_path / "once").rglob("model.safetensors"))
    assert len(files) == 3
    assert all((tmp_path / "once" / f).read_bytes() == (tmp_path / "often" / f).read_bytes() for f in files)
    record = json.loads(next((tmp_path / "often").rglob("vqvae-plain-*/done.json")).read_text())
    assert record["figures"]["step"] == 2


def test_an_evaluation_out_of_time_goes_on_to_the_same_scores(tmp_path):
    profile = micro_profile(tmp_path)
    command = ("evaluate", "--profile", profile, "--runs", tmp_path)
    assert run(*command)[0] == 0
    root = tmp_path / "micro"
    whole = pd.read_csv(root / "evaluation.csv")
    for folder in [root / "evaluation.csv", *root.glob("separated-*"), *root.glob("references-*")]:
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    stopped, out = 0, ""
    while not (root / "evaluation.csv").exists() and stopped < 20:
        status, out, _ = run(*command, "--max-minutes", "0")
        stopped += "Run the same command again to go on" in out
        assert status == 0 and (len(out.splitlines()) == 1) == ("again" in out)
    again = pd.read_csv(root / "evaluation.csv")
    assert stopped > 2 and "all rows in" in out
    pd.testing.assert_frame_equal(*(table[table.metric != "seconds"] for table in (whole, again)))
