"""The loop: a training that was killed ends as one that was not, and broken files and losses are said plainly."""

import builtins
import errno
import os

import pytest
import torch
from safetensors.torch import save_file
from tiny import seeded
from torch import nn

from hybridsep import training
from hybridsep.errors import HybridsepError
from hybridsep.profiles import TrainingSettings
from hybridsep.training import StepResult, TrainingDiverged, clear_checkpoints, load_weights, train, write_atomically

SETTINGS = TrainingSettings(steps=12, batch=4, learning_rate=1e-2, warmup=3, weight_decay=0.1, checkpoint_seconds=1e-9)


class Regression:
    """A small network with a buffer that after_step changes, as a codebook would be; `kill_at` stops it like Ctrl-C or a crash."""

    def __init__(self, kill_at=None, error=KeyboardInterrupt, after=False, nan_at=None):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
        self.module.register_buffer("average", torch.zeros(3))
        self.kill_at, self.error, self.after, self.nan_at = kill_at, error, after, nan_at
        self.steps = []

    def step(self, number, generator):
        if number == self.kill_at and not self.after:
            raise self.error
        self.steps.append(number)
        self.x = torch.randn(4, 3, generator=generator)
        loss = (self.module(self.x) - self.x.sum(1, keepdim=True)).square().mean()
        return StepResult(loss * float("nan") if number == self.nan_at else loss, {"loss": loss.item()})

    def after_step(self, number, generator):
        self.module.average.mul_(0.9).add_(self.x.mean(0) + torch.rand(3, generator=generator))
        if number == self.kill_at and self.after:
            raise self.error


def weights(task):
    return {k: v.clone() for k, v in task.module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    task = Regression()
    history = train(task, SETTINGS, tmp_path_factory.mktemp("whole"), "whole", 5)
    return weights(task), history


def figures(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kill_at", [0, 1, 6, 11])
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(tmp_path, uninterrupted, kill_at, after):
    with pytest.raises(KeyboardInterrupt):
        train(Regression(kill_at, after=after), SETTINGS, tmp_path, "killed", 5)
    resumed = Regression()
    history = train(resumed, SETTINGS, tmp_path, "resumed", 5)
    assert resumed.steps[0] == kill_at
    assert same(weights(resumed), uninterrupted[0])
    assert figures(history) == figures(uninterrupted[1])


def test_killed_again_and_again_equals_uninterrupted(tmp_path, uninterrupted):
    for kill_at in (2, 3, 7, 10):
        with pytest.raises(RuntimeError):
            train(Regression(kill_at, RuntimeError("out of memory")), SETTINGS, tmp_path, "killed", 5)
    resumed = Regression()
    train(resumed, SETTINGS, tmp_path, "resumed", 5)
    assert same(weights(resumed), uninterrupted[0])


def test_training_does_not_touch_or_read_the_global_random_state(tmp_path, uninterrupted):
    torch.manual_seed(123)
    task = Regression()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    train(task, SETTINGS, tmp_path, "whole", 5)
    assert torch.equal(before, torch.get_rng_state()) and same(weights(task), uninterrupted[0])


def test_another_seed_gives_other_weights(tmp_path, uninterrupted):
    task = Regression()
    train(task, SETTINGS, tmp_path, "other", 6)
    assert not same(weights(task), uninterrupted[0])


def killed(folder, kill_at=7):
    with pytest.raises(KeyboardInterrupt):
        train(Regression(kill_at), SETTINGS, folder, "killed", 5)
    return folder / "checkpoint.safetensors", folder / "checkpoint.previous.safetensors"


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-100], "one byte": content[:-100] + b"!" + content[-99:], "empty": b"", "short": content[:40]}[how])


@pytest.mark.parametrize("how", ["truncated", "one byte", "empty", "short"])
def test_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, uninterrupted, capsys, how):
    newest, _ = killed(tmp_path)
    damage(newest, how)
    resumed = Regression()
    train(resumed, SETTINGS, tmp_path, "resumed", 5)
    said = capsys.readouterr()
    assert f"{newest} is damaged" in said.out + said.err
    assert resumed.steps[0] == 6
    assert same(weights(resumed), uninterrupted[0])


def test_damaged_checkpoint_never_replaces_the_good_one(tmp_path):
    """Resumed from the older checkpoint and killed while the next is written: the older one must still be there."""
    newest, _ = killed(tmp_path)
    damage(newest, "one byte")

    def full_disk(path, content):
        raise HybridsepError("disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_atomically", full_disk)
        with pytest.raises(HybridsepError, match="full"):
            train(Regression(), SETTINGS, tmp_path, "resumed", 5)
    last = Regression()
    train(last, SETTINGS, tmp_path, "resumed", 5)
    assert last.steps[0] == 6


def test_both_checkpoints_damaged_starts_anew(tmp_path, uninterrupted):
    for path in killed(tmp_path):
        damage(path, "truncated")
    resumed = Regression()
    train(resumed, SETTINGS, tmp_path, "resumed", 5)
    assert resumed.steps[0] == 0 and same(weights(resumed), uninterrupted[0])


@pytest.mark.parametrize("step", [0, 5])
def test_loss_that_is_not_finite_stops_the_training_and_names_the_step(tmp_path, step):
    with pytest.raises(TrainingDiverged, match=f"nan at step {step}\\b") as error:
        train(Regression(nan_at=step), SETTINGS, tmp_path, "prior bass", 5)
    assert "prior bass" in str(error.value) and isinstance(error.value, HybridsepError)
    healthy = Regression()
    train(healthy, SETTINGS, tmp_path, "again", 5)
    assert healthy.steps[0] == step and all(torch.isfinite(v).all() for v in weights(healthy).values())


def test_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path):
    """A finite loss may have an infinite gradient: what it makes of the weights must not be what a resumed training loads."""

    class Root(Regression):
        def step(self, number, generator):
            result = super().step(number, generator)
            weight = next(self.module.parameters())
            extra = (weight * 0).sum().sqrt() if number == 5 else 0.0
            return StepResult(result.loss + extra, result.figures)

    with pytest.raises(TrainingDiverged):
        train(Root(), SETTINGS, tmp_path, "broken", 5)
    healthy = Regression()
    train(healthy, SETTINGS, tmp_path, "again", 5)
    assert all(torch.isfinite(v).all() for v in weights(healthy).values())


def test_learning_rate_warms_up_and_decays_to_its_last_share():
    settings = TrainingSettings(steps=100, batch=1, learning_rate=1.0, warmup=10, final_lr=0.1)
    rates = [training._schedule(step, settings) for step in range(101)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_history_names_every_figure_and_ends_with_the_last_step(tmp_path, uninterrupted):
    task = Regression()
    history = train(task, TrainingSettings(steps=401, batch=1, learning_rate=1e-3), tmp_path, "long", 0)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0] == "step,seconds,loss" and len(lines) == len(history) + 1
    assert history[-1]["step"] == 400 and len(history) == 201
    assert not task.module.training


def test_checkpoints_can_be_cleared(tmp_path):
    paths = killed(tmp_path)
    clear_checkpoints(tmp_path)
    assert not any(p.exists() for p in paths)
    clear_checkpoints(tmp_path)


# --- files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["fsync", "open", "replace"])
def test_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, fails):
    path = tmp_path / "weights.bin"
    write_atomically(path, b"old")

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fails == "open":
        monkeypatch.setattr("pathlib.Path.open", no_space)
    else:
        monkeypatch.setattr(os, fails, no_space)
    with pytest.raises(HybridsepError, match="weights.bin: No space left on device"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["weights.bin"]


def test_full_disk_while_training_can_be_resumed_from(tmp_path, uninterrupted, monkeypatch):
    calls = []
    real = os.fsync

    def fills_up(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fills_up)
    with pytest.raises(HybridsepError, match="No space left"):
        train(Regression(), SETTINGS, tmp_path, "full", 5)
    resumed = Regression()
    train(resumed, SETTINGS, tmp_path, "resumed", 5)
    assert resumed.steps[0] == 4 and same(weights(resumed), uninterrupted[0])


def test_weights_that_are_missing_or_damaged_are_refused_by_name(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(HybridsepError, match="missing weights .*model.safetensors"):
        load_weights(path)
    save_file({"w": torch.randn(50, generator=seeded())}, path)
    content = path.read_bytes()
    for broken in (content[:-5], content[:10], b"", b"hello" * 100, b"\xff" * 200):
        path.write_bytes(broken)
        with pytest.raises(HybridsepError, match="model.safetensors is no intact safetensors file"):
            load_weights(path)


def test_nothing_in_the_library_unpickles():
    """torch.load and pickle never appear where weights are read."""
    for file in ("training", "separation", "pipeline", "likelihood", "data/codes", "evaluation", "recording"):
        text = builtins.open(f"{os.path.dirname(training.__file__)}/{file}.py").read()
        assert "torch.load(" not in text and "pickle" not in text and "allow_pickle=True" not in text


class WithMatrices(nn.Sequential):
    """A network that names a hidden matrix, for Muon."""

    def hidden_matrices(self):
        return [self[0].weight]


def test_killed_and_resumed_with_two_optimisers_equals_uninterrupted_to_the_bit(tmp_path):
    settings = SETTINGS.model_copy(update={"matrix_learning_rate": 0.02})

    def task(kill_at=None):
        made = Regression(kill_at)
        made.module = WithMatrices(*made.module)
        made.module.register_buffer("average", torch.zeros(3))
        return made

    whole, plain, resumed = task(), Regression(), task()
    train(whole, settings, tmp_path / "whole", "whole", 5)
    train(plain, SETTINGS, tmp_path / "plain", "plain", 5)
    with pytest.raises(KeyboardInterrupt):
        train(task(7), settings, tmp_path / "killed", "killed", 5)
    train(resumed, settings, tmp_path / "killed", "resumed", 5)
    assert same(weights(resumed), weights(whole))
    assert not torch.equal(whole.module[0].weight, plain.module[0].weight)
