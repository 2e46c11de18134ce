"""The loop: a training that was killed ends as one that was not, and broken files and losses are said plainly."""

import csv
import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import stems
from safetensors.torch import load_file, save_file
from tiny import seeded, tiny_prior, tiny_vqvae
from torch import nn

from hybridsep.core.distributed import WHOLE, Part
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import load_weights, write_atomically
from hybridsep.core.profiles import TrainingSettings
from hybridsep.data.codes import CodeSet
from hybridsep.training import checkpoint
from hybridsep.training import loop as training
from hybridsep.training.checkpoint import clear_checkpoints
from hybridsep.training.codec import VQVAETask
from hybridsep.training.loop import StepResult, TrainingDiverged, train
from hybridsep.training.optimisers import schedule
from hybridsep.training.prior import PriorTask

SETTINGS = TrainingSettings(steps=12, batch=4, learning_rate=1e-2, warmup=3, weight_decay=0.1, checkpoint_seconds=1e-9)


class Regression:
    """A small network with a buffer that after_step changes, as a codebook would be; `kill_at` stops it like Ctrl-C or a crash."""

    dtype, audio_seconds = torch.float32, 0.0

    def __init__(self, kill_at=None, error=KeyboardInterrupt, after=False, nan_at=None):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
        self.module.register_buffer("average", torch.zeros(3))
        self.kill_at, self.error, self.after, self.nan_at = kill_at, error, after, nan_at
        self.steps = []

    def step(self, number, generator, part=WHOLE):
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
        return {}


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


@pytest.mark.parametrize("first, then", [(torch.float32, torch.float16), (torch.float16, torch.bfloat16)])
def test_training_goes_on_in_another_precision(tmp_path, monkeypatch, first, then):
    """A run of one machine taken up on another: only float16 scales its gradients, and a checkpoint of another precision has no scale."""
    monkeypatch.setattr(Regression, "dtype", first)
    with pytest.raises(KeyboardInterrupt):
        train(Regression(kill_at=6), SETTINGS, tmp_path, "killed", 5)
    monkeypatch.setattr(Regression, "dtype", then)
    resumed = Regression()
    train(resumed, SETTINGS, tmp_path, "resumed", 5)
    assert resumed.steps == list(range(6, 12)) and all(torch.isfinite(w).all() for w in weights(resumed).values())


def test_another_seed_gives_other_weights(tmp_path, uninterrupted):
    task = Regression()
    train(task, SETTINGS, tmp_path, "other", 6)
    assert not same(weights(task), uninterrupted[0])


def killed(folder, kill_at=7):
    with pytest.raises(KeyboardInterrupt):
        train(Regression(kill_at), SETTINGS, folder, "killed", 5)
    return folder / "checkpoint.safetensors", folder / "checkpoint.previous.safetensors"


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[:-100],
            "one byte": content[:-100] + b"!" + content[-99:],
            "empty": b"",
            "short": content[:40],
        }[how]
    )


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


def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    newest, _ = killed(tmp_path)
    content = newest.read_bytes()
    picks = random.Random(0)
    # Every byte of the header's length, and bytes everywhere else: names, shapes, history, values.
    places = [*range(8), *(picks.randrange(len(content)) for _ in range(150))]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << picks.randrange(8)
        newest.write_bytes(flipped)
        found = checkpoint.newest_checkpoint(tmp_path)
        assert (
            found is None
            or found.state["step"] == 6
            or flipped.decode("latin1").replace(" ", "") == content.decode("latin1").replace(" ", "")
        )
    newest.write_bytes(content)
    assert checkpoint.newest_checkpoint(tmp_path).state["step"] == 7


def test_damaged_checkpoint_never_replaces_the_good_one(tmp_path):
    """Resumed from the older checkpoint and killed while the next is written: the older one must still be there."""
    newest, _ = killed(tmp_path)
    damage(newest, "one byte")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(HybridsepError, match="No space left"):
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
        def step(self, number, generator, part=WHOLE):
            result = super().step(number, generator, part)
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
    rates = [schedule(step, settings) for step in range(101)]
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

    if fails == "open":
        monkeypatch.setattr("pathlib.Path.open", no_space)
    else:
        monkeypatch.setattr(os, fails, no_space)
    with pytest.raises(HybridsepError, match="weights.bin: No space left on device"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["weights.bin"]


@pytest.mark.parametrize("call", ["write", "fsync", "first rename", "second rename"])
def test_full_disk_keeps_the_last_good_checkpoints_whatever_call_it_strikes(tmp_path, monkeypatch, call):
    killed(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    if call == "write":
        opened = Path.open
        monkeypatch.setattr(
            Path, "open", lambda path, mode="r", **kwargs: no_space() if mode == "wb" else opened(path, mode, **kwargs)
        )
    elif call == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        calls, real = [], os.replace
        monkeypatch.setattr(
            os,
            "replace",
            lambda *args: no_space() if len(calls) == (call == "second rename") else calls.append(1) or real(*args),
        )
    with pytest.raises(HybridsepError, match="checkpoint.safetensors: No space left on device") as error:
        train(Regression(), SETTINGS, tmp_path, "full", 5)
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert before["checkpoint.safetensors"] in after.values() and not any(name.endswith(".tmp") for name in after)
    resumed = Regression()
    train(resumed, SETTINGS, tmp_path, "resumed", 5)
    assert resumed.steps[0] == 7


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
    """torch.load and pickle never appear in the library, whatever it reads."""
    files = sorted(Path(training.__file__).parents[1].rglob("*.py"))
    assert len(files) > 20
    for file in files:
        text = file.read_text()
        assert not any(word in text for word in ("torch.load(", "import pickle", "allow_pickle=True", "_object(")), file


def test_checkpoint_is_a_safetensors_file_that_holds_all_there_is_to_go_on_with(tmp_path):
    newest, _ = killed(tmp_path)
    names = set(load_file(newest))
    assert {
        "module.average",
        "module.0.weight",
        "optimiser.0.0.exp_avg",
        "optimiser.0.0.exp_avg_sq",
        "optimiser.0.0.step",
    } <= names
    state = checkpoint.newest_checkpoint(tmp_path).state
    assert state["step"] == 7 and len(state["history"]) == 7 and {"scaler", "watch", "seconds"} <= state.keys()
    assert json.loads(json.dumps(state)) == state


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


# --- killed ----------------------------------------------------------------------------------------------------------------


def test_killed_at_twenty_moments_the_write_included_and_resumed_equals_one_never_killed(tmp_path):
    """Real processes, real SIGKILL, a VQ-VAE with its codebook; `killed.py` forks one for each moment."""
    script = Path(__file__).parents[1] / "helpers" / "killed.py"
    found = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=400)
    assert found.returncode == 0, found.stderr[-3000:]
    report = json.loads(found.stdout)
    assert len(report["killed"]) == 20 and {"step", "half written", "written", "moved one", "moved both"} <= set(
        report["killed"]
    )
    assert report["resumed"] == [report["whole"]] * 20
    assert report["again and again"] == report["whole"]


# --- losses that leave ------------------------------------------------------------------------------------------------------


class Worsening(Regression):
    """The loss is good for 80 steps, then grows by a tenth each step."""

    def step(self, number, generator, part=WHOLE):
        result = super().step(number, generator, part)
        return StepResult(result.loss * 0 + (1.0 if number < 80 else 1.1 ** (number - 80)), result.figures, phase=0)


def test_diverging_loss_stops_the_training_and_keeps_the_weights_from_before_it_rose(tmp_path):
    settings = SETTINGS.model_copy(update={"steps": 120})
    with pytest.raises(
        TrainingDiverged, match=r"prior: loss diverges: .* at step (\d+), batch of seeded_generator\(5, \1\)"
    ) as error:
        train(Worsening(), settings, tmp_path, "prior", 5)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    found = checkpoint.newest_checkpoint(tmp_path)
    assert 80 <= found.state["step"] and found.state["watch"]["mean"] <= 2.0


def test_loss_of_another_phase_is_not_taken_for_a_diverging_one():
    watch = training.LossWatch()
    for phase, level in ((0, 1.0), (1, 50.0)):
        for _ in range(300):
            watch.add(level, phase)
            assert watch.rise == pytest.approx(1.0)
    for _ in range(300):
        watch.add(400.0, 1)
    assert watch.rise > training.DIVERGED


@pytest.mark.parametrize("spike", [10.0, 60.0])
def test_single_spikes_and_losses_near_zero_do_not_stop_a_training(spike):
    watch = training.LossWatch()
    for number in range(2000):
        watch.add(spike if number % 400 == 399 else max(1e-4, 10 * 0.97**number), 0)
        assert watch.rise <= training.DIVERGED


# --- float16 -----------------------------------------------------------------------------------------------------------------


class Half(Regression):
    """Gradients that overflow float16's range once scaled, at one step, as on a GPU."""

    dtype = torch.float16

    def step(self, number, generator, part=WHOLE):
        result = super().step(number, generator, part)
        return StepResult(result.loss * (1e35 if number == 4 else 1.0), result.figures)


def test_overflowing_float16_gradient_skips_the_step_halves_the_scale_and_resumes_to_the_bit(tmp_path):
    whole = Half()
    train(whole, SETTINGS, tmp_path / "whole", "whole", 5)
    seen = {}
    for stop in (4, 5, 6):
        with pytest.raises(KeyboardInterrupt):
            train(Half(stop), SETTINGS, tmp_path / f"{stop}", "killed", 5)
        found = checkpoint.newest_checkpoint(tmp_path / f"{stop}")
        seen[stop] = found.state["scaler"]["scale"], found.tensors["module.0.weight"]
    assert seen[5][0] == seen[4][0] / 2 and torch.equal(seen[5][1], seen[4][1])
    assert seen[6][0] == seen[5][0] and not torch.equal(seen[6][1], seen[5][1])
    resumed = Half()
    train(resumed, SETTINGS, tmp_path / "6", "resumed", 5)
    assert same(weights(resumed), weights(whole))


def test_float16_gradient_that_never_fits_is_said(tmp_path):
    class Never(Regression):
        dtype = torch.float16

        def step(self, number, generator, part=WHOLE):
            result = super().step(number, generator, part)
            return StepResult(result.loss + (next(self.module.parameters()) * 0).sum().sqrt(), result.figures)

    with pytest.raises(TrainingDiverged, match="gradient is not finite"):
        train(Never(), SETTINGS.model_copy(update={"steps": 60, "checkpoint_seconds": 1000.0}), tmp_path, "half", 5)


# --- accumulation and progress ------------------------------------------------------------------------------------------------


class Cut(Regression):
    """A task whose batch can be cut; without batch statistics the parts' mean gradient is the whole's."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(3, 1)
        self.module.register_buffer("average", torch.zeros(3))
        self.parts = []

    def step(self, number, generator, part=WHOLE):
        self.parts.append(part)
        self.x = torch.randn(4, 3, generator=generator)
        x = part.of(self.x)
        loss = (self.module(x) - x.sum(1, keepdim=True)).square().mean()
        return StepResult(loss, {"loss": loss.item()})


def test_accumulated_parts_train_as_the_whole_batch_does(tmp_path):
    whole, cut = Cut(), Cut()
    cut.module.load_state_dict(whole.module.state_dict())
    first = train(whole, SETTINGS, tmp_path / "whole", "whole", 5)
    second = train(cut, SETTINGS.model_copy(update={"accumulate": 2}), tmp_path / "cut", "cut", 5)
    assert len(cut.parts) == 2 * len(whole.parts) and cut.parts[:2] == [Part(0, 2), Part(1, 2)]
    assert [row["loss"] for row in first] == pytest.approx([row["loss"] for row in second], abs=1e-5)
    for a, b in zip(whole.module.parameters(), cut.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with pytest.raises(HybridsepError, match="batch of 4 cannot be cut into 3"):
        train(Cut(), SETTINGS.model_copy(update={"accumulate": 3}), tmp_path / "odd", "odd", 5)


def test_progress_says_loss_speed_and_time_left(tmp_path, capsys):
    task = Regression()
    task.audio_seconds = 2.5
    history = train(task, SETTINGS, tmp_path, "VQ-VAE plain", 5)
    said = capsys.readouterr().err
    assert (
        "VQ-VAE plain" in said and "loss=" in said and "audio_per_second=" in said and "step/s" in said and "<" in said
    )
    assert all(row["audio_per_second"] > 0 for row in history)


def test_history_tells_usage_perplexity_and_speed(tmp_path):
    module = tiny_vqvae()
    codes, steps = len(module.codebook), module.settings.training.steps
    rows = train(VQVAETask(module, stems(), 4.0, torch.float32), module.settings.training, tmp_path, "codec", 0)
    with (tmp_path / "history.csv").open() as file:
        written = list(csv.DictReader(file))
    # The first of four steps starts the codebook: nothing is quantised before.
    assert (
        len(rows) == len(written) == steps
        and "perplexity" not in rows[0]
        and written[0]["perplexity"] == written[0]["used_codes"] == ""
    )
    for row, line in zip(rows[1:], written[1:], strict=True):
        used = row["used_codes"] * codes
        assert used == pytest.approx(round(used), abs=1e-4) and 0 < row["used_codes"] <= 1
        assert 1 <= row["perplexity"] <= used + 1e-4, "codes used equally often carry the most"
        assert all(float(line[name]) == row[name] for name in ("perplexity", "used_codes", "audio_per_second"))
    assert len({row["perplexity"] for row in rows[1:]}) > 1 and all(row["audio_per_second"] > 0 for row in rows)


def test_history_of_a_prior_tells_nats_and_audio_seconds_of_its_codes(tmp_path):
    module = tiny_prior()
    settings, code_seconds = module.settings.training, 0.5
    songs = (torch.randint(12, (2, 90), generator=seeded()).to(torch.int16),)
    started = time.monotonic()
    rows = train(PriorTask(module, CodeSet(songs), 1, torch.float32, code_seconds), settings, tmp_path, "prior", 0)
    slowest = settings.batch * module.settings.crop_codes * code_seconds / (time.monotonic() - started)
    assert len(rows) == settings.steps and all(0 < row["nats_per_code"] < 20 for row in rows)
    # A step takes less time than all of them together.
    assert all(row["audio_per_second"] > slowest for row in rows)


def test_history_can_be_read_while_the_training_runs(tmp_path, uninterrupted):
    killed(tmp_path)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0] == "step,seconds,loss" and len(lines) == 1 + 7
    train(Regression(), SETTINGS, tmp_path, "resumed", 5)
    steps = [line.split(",")[0] for line in (tmp_path / "history.csv").read_text().splitlines()[1:]]
    assert steps == [str(i) for i in range(12)]
