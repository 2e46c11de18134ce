"""The VQ-VAE: shapes, the bottleneck's arithmetic, and L_lin."""

import itertools

import pytest
import torch
from tiny import seeded, tiny_vqvae, vqvae_settings
from torch import nn

from hybridsep.kernels import nearest
from hybridsep.kernels.nearest import nearest_code
from hybridsep.models import vqvae
from hybridsep.models.losses import SpectralLoss, linear_loss, normalised_error
from hybridsep.models.vqvae import VQVAE, Bottleneck, Decoder, Encoder
from hybridsep.training.codec import VQVAETask


def grid_bottleneck(side=5):
    """A codebook closed under averaging of even points: the integer grid [0, side)²."""
    points = torch.tensor(list(itertools.product(range(side), repeat=2)), dtype=torch.float32)
    bottleneck = Bottleneck(len(points), 2, 0.99, 0.02)
    bottleneck.codebook.copy_(points)
    return bottleneck


def line_bottleneck(codes=4):
    bottleneck = Bottleneck(codes, 1, 0.9, 0.02)
    values = torch.arange(codes, dtype=torch.float32)[:, None]
    bottleneck.codebook.copy_(values), bottleneck.sums.copy_(values)
    return bottleneck


def l_lin(bottleneck, first, second, mixture):
    return linear_loss(bottleneck(0.5 * first + 0.5 * second).values, mixture)


# --- L_lin -----------------------------------------------------------------------------------------------------------------


def test_linear_loss_is_zero_for_an_exactly_additive_codebook():
    bottleneck = grid_bottleneck()
    even = 2 * torch.randint(3, (2, 4, 50, 2), generator=seeded()).float()
    first, second = (bottleneck.quantise(x) for x in even)
    mixture = bottleneck.quantise(0.5 * first + 0.5 * second)
    assert torch.equal(mixture, 0.5 * first + 0.5 * second)
    assert float(l_lin(bottleneck, first, second, mixture)) == 0.0


def test_linear_loss_is_the_mean_squared_distance_where_the_sum_misses_the_mixture():
    bottleneck = grid_bottleneck()
    first, second = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[4.0, 2.0]]])
    mixture = torch.tensor([[[2.0, 4.0]]])
    # B(½ q1 + ½ q2) = (2, 1); the squared norm is 9, shared by two dimensions.
    assert float(l_lin(bottleneck, first, second, mixture)) == pytest.approx(4.5)


def test_linear_loss_quantises_the_sum():
    bottleneck = grid_bottleneck()
    first, second = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    losses = [float(l_lin(bottleneck, first, second, torch.tensor([[[x, 0.0]]]))) for x in (0.0, 1.0)]
    assert sorted(losses) == [0.0, 0.5]


def test_gradient_of_the_linear_loss_reaches_the_latents_of_all_three():
    bottleneck = grid_bottleneck()
    latent = (4 * torch.rand(3, 2, 7, 2, generator=seeded())).requires_grad_()
    first, second, mixture = bottleneck(latent.flatten(0, 1)).values.chunk(3)
    l_lin(bottleneck, first, second, mixture).backward()
    for part in latent.grad:
        assert part.abs().max() > 0
    assert torch.allclose(latent.grad[0], latent.grad[1]) and torch.allclose(latent.grad[0], -0.5 * latent.grad[2])


class FixedStems:
    """Stands in for a StemSet: the same noise for every step."""

    def random_pairs(self, count, length, generator):
        return torch.randn(2, count, length, generator=seeded(3)) * torch.tensor([0.3, 0.1])[:, None, None]


class LineVQVAE(nn.Module):
    """One pair of one code each: the latents are given, the codebook is {0, 1, 4}, the decoder is silent."""

    def __init__(self, *latents):
        super().__init__()
        self.settings = vqvae_settings(commit_weight=2.0, l2_weight=0.0, stft_weight=0.0)
        self.bottleneck = line_bottleneck(3)
        self.bottleneck.codebook[2] = self.bottleneck.sums[2] = 4.0
        self.codebook, self.latents, self.decoded = self.bottleneck.codebook, torch.tensor(latents), None

    def latent(self, waveform):
        return self.latents[:, None, None]

    def generate(self, values):
        self.decoded = values.flatten().tolist()
        return torch.zeros(len(values), 2048)


@pytest.fixture
def step():
    """Loss and figures of one step on latents 0.2 and 3.8 of two sources and 4.4 of their mixture, and the module."""

    def of(weight):
        module = LineVQVAE(0.2, 3.8, 4.4)
        task = VQVAETask(module, FixedStems(), weight, torch.float32)
        loss, figures = task.loss(torch.zeros(3, 2048), quantised=True)
        return task, float(loss), {name: float(value) for name, value in figures.items()}

    return of


def test_linear_kind_pays_for_l_lin_and_for_the_commitment_of_sources_and_sums(step):
    # Codes 0 and 4; their mean 2 goes to code 1, one away; the mixture's code is 4, three away from there.
    _, loss, figures = step(weight=0.5)
    assert figures["linear"] == pytest.approx(9.0)
    assert figures["commit"] == pytest.approx(0.2**2 + 1.0)
    assert loss == pytest.approx(0.5 * 9.0 + 2.0 * 1.04)


def test_plain_kind_pays_for_the_commitment_of_sources_and_mixture_only(step):
    _, loss, figures = step(weight=0.0)
    assert figures["commit"] == pytest.approx((0.2**2 + 0.2**2 + 0.4**2) / 3)
    assert loss == pytest.approx(2.0 * figures["commit"])


def test_linear_kind_decodes_sources_only_and_plain_kind_the_mixture_too(step):
    assert step(weight=0.5)[0].module.decoded == pytest.approx([0, 4])
    assert step(weight=0.0)[0].module.decoded == pytest.approx([0, 4, 4])


def test_moving_averages_follow_the_sums_of_the_linear_kind(step):
    for weight, sum_share in ((0.5, 0.1), (0.0, 0.0)):
        task, *_ = step(weight)
        task.after_step(task.first_quantised, seeded())
        bottleneck = task.module.bottleneck
        assert bottleneck.usage.tolist() == pytest.approx([1.0, 0.9 + sum_share, 1.1])
        assert bottleneck.sums[:, 0].tolist() == pytest.approx([0.02, 0.9 + sum_share * 2.0, 3.6 + 0.1 * (3.8 + 4.4)])


# --- bottleneck ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 100])
@pytest.mark.parametrize("at_once", [7, 16384])
def test_nearest_code_equals_the_brute_force_argmin(monkeypatch, rows, at_once):
    monkeypatch.setattr(nearest, "ROWS_AT_ONCE", at_once)
    vectors, codebook = torch.randn(rows, 6, generator=seeded()), torch.randn(37, 6, generator=seeded(1))
    assert torch.equal(nearest_code(vectors, codebook), torch.cdist(vectors, codebook).argmin(1))
    assert nearest_code(vectors, codebook).dtype == torch.int64


def test_nearest_code_takes_the_lowest_index_among_equals():
    codebook = torch.tensor([[5.0], [1.0], [1.0], [5.0]])
    assert nearest_code(torch.tensor([[0.9], [4.0]]), codebook).tolist() == [1, 0]


def test_straight_through_gradient_is_the_identity():
    bottleneck, latent = grid_bottleneck(), torch.randn(2, 3, 2, requires_grad=True)
    out = bottleneck(latent).values
    assert torch.allclose(out, bottleneck.quantise(latent), atol=1e-6)
    weight = torch.randn(2, 3, 2)
    (out * weight).sum().backward()
    assert torch.equal(latent.grad, weight)


def test_bottleneck_passes_gradients_through_and_pulls_latents_to_their_codes():
    bottleneck = grid_bottleneck()
    latent = torch.tensor([[[0.3, 0.1]]], requires_grad=True)
    out = bottleneck(latent)
    assert out.codes.tolist() == [[0]] and torch.allclose(out.values, torch.zeros(1, 1, 2), atol=1e-6)
    assert float(out.commit_loss.detach()) == pytest.approx((0.09 + 0.01) / 2)
    out.commit_loss.backward()
    assert torch.allclose(latent.grad, torch.tensor([[[0.3, 0.1]]]))
    assert not bottleneck.codebook.requires_grad


def test_moving_averages_equal_the_hand_computed_ones():
    bottleneck = line_bottleneck()
    latent = torch.tensor([[0.2], [0.4], [1.5], [3.0]])
    perplexity = bottleneck.update(latent, torch.tensor([0, 0, 1, 3]), seeded())
    assert bottleneck.usage.tolist() == pytest.approx([0.9 + 0.2, 0.9 + 0.1, 0.9, 0.9 + 0.1])
    assert bottleneck.sums[:, 0].tolist() == pytest.approx([0.1 * 0.6, 0.9 + 0.15, 1.8, 2.7 + 0.3])
    assert bottleneck.codebook[:, 0].tolist() == pytest.approx([0.06 / 1.1, 1.05, 2.0, 3.0])
    assert perplexity == pytest.approx(2**1.5, rel=1e-4)


def test_dead_codes_are_seeded_again_from_the_batch_and_live_ones_are_not():
    bottleneck = line_bottleneck()
    bottleneck.usage.copy_(torch.tensor([10.0, 0.01, 10.0, 0.01]))
    bottleneck.sums.copy_(bottleneck.codebook * bottleneck.usage[:, None])
    latent = torch.tensor([[7.0], [8.0], [9.0]])
    bottleneck.update(latent, torch.tensor([0, 0, 2]), seeded())
    for code in (1, 3):
        assert float((bottleneck.codebook[code] - latent).abs().min()) < 1e-5
    assert float(bottleneck.usage.min()) > 1.0
    assert float(bottleneck.codebook[0]) == pytest.approx(1.5 / 9.2) and float(bottleneck.codebook[2]) == pytest.approx(
        (18 + 0.9) / 9.1
    )


def test_codebook_starts_from_the_encoders_output():
    bottleneck = Bottleneck(6, 3, 0.99, 0.02)
    latent = torch.randn(50, 3, generator=seeded())
    bottleneck.start_from(latent, seeded(1))
    assert (bottleneck.codebook[:, None] == latent).all(-1).any(1).all()
    assert torch.equal(bottleneck.sums, bottleneck.codebook) and (bottleneck.usage == 1).all()


def test_training_starts_without_codes_then_takes_them_from_the_encoder():
    module = VQVAE(vqvae_settings(unquantised_share=0.5))
    task = VQVAETask(module, FixedStems(), 1.0, torch.float32)
    assert task.first_quantised == 2
    assert "linear" not in task.step(1, seeded()).figures
    assert (module.codebook == 0).all()
    task.after_step(1, seeded())
    assert (module.codebook != 0).any()
    before = module.codebook.clone()
    assert "linear" in task.step(2, seeded()).figures
    task.after_step(2, seeded())
    assert not torch.equal(before, module.codebook)


# --- model -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [(8, 4, 2), (2, 2, 2), (4,), (6, 2)])
def test_one_code_stands_for_one_hop_and_decodes_to_it(strides):
    module = tiny_vqvae(strides=strides, widths=(4,) * len(strides), crop_samples=6144)
    hop = module.hop
    assert hop == torch.tensor(strides).prod()
    waveform = torch.randn(3, 10 * hop)
    assert module.latent(waveform).shape == (3, 10, 5)
    codes = module.encode(waveform)
    assert codes.shape == (3, 10) and codes.dtype == torch.int64 and 0 <= codes.min() <= codes.max() < 12
    assert module.decode(codes).shape == waveform.shape


@pytest.mark.parametrize("strides", [(3,), (1, 4), (8, 5)])
def test_strides_are_kept_or_refused_when_the_settings_are_read(strides):
    try:
        settings = vqvae_settings(strides=strides, widths=(4,) * len(strides), crop_samples=32 * 120)
    except ValueError as error:
        assert "strides" in str(error)
        return
    latent = Encoder(settings)(torch.randn(1, 1, 6 * settings.hop))
    assert latent.shape[-1] == 6
    assert Decoder(settings)(latent).shape[-1] == 6 * settings.hop


@pytest.mark.parametrize("length", [0, 1, 31, 33, 2047])
def test_length_that_is_no_multiple_of_the_hop_is_refused_with_its_value(length):
    with pytest.raises(ValueError, match=rf"{length} samples.*32"):
        tiny_vqvae().encode(torch.zeros(1, length))


def test_encoding_and_decoding_are_deterministic_and_independent_of_the_batch():
    module, waveform = tiny_vqvae(), torch.randn(5, 1024, generator=seeded())
    codes = module.encode(waveform)
    assert torch.equal(codes, module.encode(waveform))
    assert torch.equal(codes[2:3], module.encode(waveform[2:3]))
    once = module.decode(codes)
    assert torch.equal(once, module.decode(codes)) and torch.isfinite(once).all()
    assert torch.equal(module.encode(once), module.encode(module.decode(codes)))


@pytest.mark.parametrize(
    "changes", [{}, {"strides": (4, 4), "widths": (4, 4), "decoder_depth": 2}, {"strides": (2, 8), "widths": (4, 4)}]
)
def test_no_sample_depends_on_codes_beyond_the_decoders_reach(changes):
    module = tiny_vqvae(**changes)
    reach = module.decoder.reach
    codes = torch.randint(12, (1, 4 * reach + 1), generator=seeded())
    other, middle = codes.clone(), 2 * reach
    other[0, middle] = (codes[0, middle] + 1) % 12
    moved = (module.decode(codes) - module.decode(other))[0].abs().view(-1, module.hop).amax(1) > 0
    assert moved[middle] and not moved[: middle - reach].any() and not moved[middle + reach + 1 :].any()
    assert moved.nonzero().min() <= middle - reach + 2


@pytest.mark.parametrize("length", [256, 257, 300, 800])
@pytest.mark.parametrize("changes", [{}, {"strides": (4, 4), "widths": (4, 4), "encoder_depth": 2}])
def test_a_long_waveform_is_encoded_in_pieces_as_in_one(monkeypatch, length, changes):
    module = tiny_vqvae(**changes)
    waveform = torch.randn(2, length * module.hop, generator=seeded())
    whole, pieces, latent = module.encode(waveform), [], module.latent
    monkeypatch.setattr(module, "latent", lambda part: pieces.append(part.shape[1]) or latent(part))
    monkeypatch.setattr(vqvae, "LONGEST", 100 * module.hop)
    assert torch.equal(module.encode(waveform), whole)
    assert len(pieces) == -(-length // 100) and max(pieces) <= (100 + 2 * module.encoder.reach) * module.hop


def test_encoding_and_decoding_change_no_weight():
    module = tiny_vqvae()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.decode(module.encode(torch.randn(2, 1024)))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_losses_are_zero_for_the_target_itself_and_known_for_silence():
    target = 0.5 * torch.randn(3, 4096, generator=seeded())
    assert float(normalised_error(target, target)) == 0.0
    assert float(SpectralLoss()(target, target)) < 1e-3
    assert float(normalised_error(torch.zeros_like(target), target)) == pytest.approx(1.0, abs=1e-3)
    assert float(SpectralLoss()(torch.zeros_like(target), target)) == pytest.approx(1.0, abs=0.02)
    silence = torch.zeros_like(target).requires_grad_()
    (SpectralLoss()(silence, silence.detach()) + normalised_error(silence, silence.detach())).backward()
    assert torch.isfinite(silence.grad).all()
