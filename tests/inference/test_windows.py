"""Windows of long recordings: nothing lost, and no click where they meet."""

import numpy as np
import pytest
import torch
from tiny import RATE, count_likelihood, seeded, tiny_profile, tiny_separator

from hybridsep.inference.search import SearchResult
from hybridsep.inference.separator import Estimate, Separator
from hybridsep.inference.windows import Windows


def sound(seconds, rate=RATE):
    return 0.2 * torch.randn(1, round(seconds * rate), generator=seeded())


def fades(places):
    """Samples in which one window gives way to the next, where a click would be."""
    middles = [(first + last + places.size) // 2 for first, last in zip(places.starts, places.starts[1:], strict=False)]
    return [slice(middle - places.fade // 2, middle + -(-places.fade // 2)) for middle in middles]


def jumps(waveforms, places, rate):
    """How much rougher waveforms [..., T] are within 1 ms of where a cross-fade begins or ends than within 50 ms of it, in dB."""
    rough = np.abs(np.diff(waveforms, 2, prepend=0, append=0)).astype(np.float64) ** 2
    ends = [end for fade in fades(places) for end in (fade.start, fade.stop)]

    def around(seconds):
        reach = max(1, round(seconds * rate))
        return np.stack([rough[..., max(0, end - reach) : end + reach].mean(-1) for end in ends])

    return 10 * np.log10((around(0.001).mean(0) + 1e-20) / (around(0.05).mean(0) + 1e-20))


class Echo(Separator):
    """A model that takes what it hears for both stems; or what `answer` makes of each window."""

    profile = tiny_profile()
    sample_rate, hop = 22050, 64

    def __init__(self, rate=22050, hop=64, answer=lambda heard: heard):
        self.sample_rate, self.hop, self.answer = rate, hop, answer

    def estimate(self, mixture, options=None, on_step=None):
        codes = mixture.shape[1] // self.hop
        assert codes * self.hop == mixture.shape[1]
        batch = len(mixture)
        found = SearchResult(
            torch.zeros(2, batch, 1, codes, dtype=torch.long), torch.zeros(batch, 1), torch.zeros(batch), *[None] * 4
        )
        return Estimate(mixture, self.answer(mixture).expand(2, -1, -1), found)


# --- where they lie --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hop", [1, 64, 2048, 30_000, 100_000])
@pytest.mark.parametrize("samples", [1, 63, 4410, 66_150, 66_151, 68_000, 121_275, 121_276, 200_000, 1_000_000])
def test_windows_cover_a_recording_and_are_never_half_empty(samples, hop):
    windows = Windows.over(samples, 22050, hop)
    assert windows.starts[0] == 0 and windows.size % hop == 0 and all(start % hop == 0 for start in windows.starts)
    assert 0 <= windows.starts[-1] + windows.size - samples < hop
    gaps = np.diff(windows.starts)
    assert (
        (gaps > 0).all() and (gaps <= windows.size).all() and np.ptp(gaps) <= hop
        if len(windows) > 1
        else samples <= windows.size
    )
    assert windows.size <= max(hop, 3 * 22050 + hop)
    total = torch.zeros(samples)
    for index in range(len(windows)):
        weights = windows.weights(index)
        assert (weights >= 0).all() and (weights <= 1).all()
        windows.add(total, index, torch.ones(windows.size))
    assert torch.allclose(total, torch.ones(samples), atol=1e-5)


def test_neighbours_overlap_by_half_a_second_at_least():
    windows = Windows.over(60 * 22050, 22050, 64)
    assert (windows.size - np.diff(windows.starts) >= windows.fade).all() and windows.fade > 0.49 * 22050


@pytest.mark.parametrize("hop", [64, 2048])
@pytest.mark.parametrize("seconds", [0.2, 1.0, 2.999, 3.0, 3.001, 5.5, 5.501, 8.0, 17.3])
def test_cross_faded_windows_give_back_every_sample(seconds, hop):
    waveform = sound(seconds, 22050)
    found = Echo(hop=hop).separate(waveform, 22050, refine=False)
    assert found.stems.shape == (2, *waveform.shape)
    assert torch.allclose(found.stems.sum(0), waveform, atol=1e-5)


# --- where they meet -------------------------------------------------------------------------------------------------------


def disagreeing(heard):
    """Tones of one pitch, of another phase and loudness in every window."""
    time = torch.arange(heard.shape[1]) / RATE
    phase = 2 * torch.pi * torch.rand(len(heard), 1, generator=seeded(1))
    return (0.2 + torch.rand(len(heard), 1, generator=seeded(2))) * torch.sin(2 * torch.pi * 100 * time + phase)


def test_no_clicks_where_windows_that_disagree_meet(monkeypatch):
    """Second differences within 1 ms of where a cross-fade begins or ends, against those around: put side by side instead, the windows click."""
    waveform, places = sound(30.0), Windows.over(30 * RATE, RATE, 32)
    faded = Echo(RATE, 32, disagreeing).separate(waveform, RATE, refine=False).stems[:, 0]
    assert abs(jumps(faded.numpy(), places, RATE)).max() < 3

    sharp = [Windows(places.starts, places.size, 1, places.samples), places]
    monkeypatch.setattr(Windows, "over", lambda *_: sharp[0])
    side_by_side = Echo(RATE, 32, disagreeing).separate(waveform, RATE, refine=False).stems[:, 0]
    assert (jumps(side_by_side.numpy(), sharp[0], RATE) > 10).all()


@pytest.mark.parametrize("refine", [True, False])
def test_no_clicks_in_the_stems_of_a_model(refine):
    """Of an untrained one: its windows have nothing in common."""
    waveform, places = sound(20.0), Windows.over(20 * RATE, RATE, 32)
    stems = tiny_separator(count_likelihood()).separate(waveform, RATE, particles=2, refine=refine).stems[:, 0]
    assert abs(jumps(stems.numpy(), places, RATE)).max() < 3
