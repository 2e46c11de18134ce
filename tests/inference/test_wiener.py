"""Refinement: stems that sum to the mixture, and masks that help."""

import pytest
import torch
from tiny import decibels, noise, seeded

from hybridsep.inference import wiener as refinement
from hybridsep.inference.wiener import wiener


@pytest.mark.parametrize("samples", [1, 100, 1024, 1025, 2047, 2048, 2049, 7777, 66150])
@pytest.mark.parametrize("size", [256, 2048])
def test_mean_of_refined_stems_is_the_mixture(samples, size):
    target = noise(2, samples)
    stems = torch.randn(2, 2, samples, generator=seeded(1)) * torch.tensor([1.0, 0.01])[:, None, None]
    refined = wiener(stems, target, size)
    assert refined.shape == stems.shape
    assert decibels(refined.mean(0) - target, target) < -60


@pytest.mark.parametrize("level", [0.0, 1e-12])
def test_mixture_is_shared_equally_between_silent_estimates(level):
    target = noise(1, 5000)
    refined = wiener(torch.full((2, 1, 5000), level), target)
    for stem in refined:
        assert decibels(stem - target, target) < -60


def test_silent_estimate_gets_nothing_of_what_the_other_explains():
    target = noise(1, 5000)
    refined = wiener(torch.stack([2 * target, torch.zeros_like(target)]), target)
    assert decibels(refined[0] - 2 * target, target) < -40 and decibels(refined[1], target) < -40


def test_refinement_of_silence_is_silence():
    assert (wiener(torch.randn(2, 1, 4096), torch.zeros(1, 4096)) == 0).all()


def test_refinement_separates_tones_of_different_pitch():
    time = torch.arange(16000) / 8000
    sources = torch.stack([torch.sin(2 * torch.pi * hz * time) for hz in (200, 1500)])[:, None]
    target = sources.mean(0)
    refined = wiener(sources, target)
    for stem, source in zip(refined, sources, strict=True):
        assert decibels((stem - source)[:, 2000:-2000], source) < -25


@pytest.mark.parametrize("pan", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_panned_sources_gain_from_trust_as_well(pan, noise):
    """Mono estimates say nothing of the panning; trusting them half still scores better in every channel's mixture than masks alone."""
    time, hiss = torch.arange(2 * 22050) / 22050, torch.randn(3, 2 * 22050, generator=seeded())
    tones = torch.sin(2 * torch.pi * 110 * time) + 0.5 * torch.sin(2 * torch.pi * 220 * time)
    sources = torch.stack([0.3 * tones, 0.6 * hiss[0] * torch.exp(-8 * (time % 0.5))])
    gains = 2 * torch.tensor([[pan, 1 - pan], [1 - pan, pan]])
    panned = gains[:, :, None] * sources[:, None]
    heard = (sources + noise * sources.std(-1, keepdim=True) * hiss[1:])[:, None]
    masked, trusted = (-decibels(wiener(heard, panned.mean(0), 2048, trust) - panned, panned) for trust in (0.0, 0.5))
    assert trusted > masked


@pytest.mark.parametrize("length, channels", [(300, 1), (5000, 3), (70_000, 2)])
def test_masks_of_blocks_are_those_of_the_whole(monkeypatch, length, channels):
    """Estimates in mono, a recording of several channels, and blocks of other lengths in both."""
    stems, heard = torch.randn(2, 1, length, generator=seeded()), torch.randn(channels, length, generator=seeded(1))
    whole = wiener(stems.expand(-1, channels, -1), heard, 256)
    monkeypatch.setattr(refinement, "WIENER_FRAMES", 32)
    blocks = list(refinement.wiener_blocks(stems.split(777, -1), heard.split(1234, -1), 256))
    assert torch.allclose(torch.cat(blocks, -1), whole, atol=1e-5) and max(b.shape[-1] for b in blocks) <= 32 * 64


def test_long_refinement_in_pieces_of_the_default_length_is_that_in_one():
    size = 256
    length = 3 * 2 * refinement.WIENER_FRAMES * size // 4 + 77
    stems, heard = torch.randn(2, 2, length, generator=seeded()), torch.randn(2, length, generator=seeded(1))
    pieces = list(refinement.wiener_blocks([stems], [heard], size))
    assert len(pieces) == 7 and torch.equal(torch.cat(pieces, -1), wiener(stems, heard, size))
    assert torch.allclose(
        wiener(stems, heard, size), refinement._wiener(stems, heard, size, refinement.TRUST), atol=1e-5, rtol=0
    )
