"""Budgets: hours and memory are those of what runs, and a training stops when its time is up, whole, to go on later."""

import os

import psutil
import pytest
import torch
from ranks import stems
from tiny import count_likelihood, seeded, tiny_prior, tiny_profile, tiny_vqvae
from torch.utils.flop_counter import FlopCounterMode

from hybridsep import budget
from hybridsep.core.device import fast_dtype
from hybridsep.core.profiles import load_profile
from hybridsep.data.codes import CodeSet
from hybridsep.inference.caches import PrivateCache
from hybridsep.inference.decoder import PriorStack
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE
from hybridsep.training.codec import VQVAETask
from hybridsep.training.loop import make_optimisers, train
from hybridsep.training.prior import PriorTask

GIB = 2**30


# --- arithmetic and memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["vqvae", "prior"])
def test_operations_without_data_are_those_of_a_real_training_step(model):
    profile = tiny_profile()
    if model == "vqvae":
        task, found = VQVAETask(tiny_vqvae().train(), stems(), 4.0, torch.float32), budget.vqvae_budget(profile)
    else:
        songs = (torch.randint(12, (2, 90), generator=seeded()).to(torch.int16),)
        task, found = PriorTask(tiny_prior(), CodeSet(songs), 1, torch.float32), budget.prior_budget(profile)
    with FlopCounterMode(display=False) as counter:
        task.step(3, seeded()).loss.backward()
    steps = task.module.settings.training.steps
    assert found.flops == counter.get_total_flops() * steps > 0
    assert found.hours == pytest.approx(found.flops / found.rate / 3600)


def test_weights_gradients_and_moments_are_as_large_as_counted():
    profile = tiny_profile()
    training = profile.prior.training.model_copy(update={"matrix_learning_rate": 0.01})
    profile = profile.model_copy(update={"prior": profile.prior.model_copy(update={"training": training})})
    found = budget.prior_budget(profile)
    prior = Prior(profile.prior, profile.vqvae.codes)
    optimisers = make_optimisers(prior, training)
    prior(torch.zeros(1, 16, dtype=torch.long)).sum().backward()
    for optimiser in optimisers:
        optimiser.step()
    moments = [v for o in optimisers for state in o.state.values() for v in state.values() if v.ndim]
    assert found.weight_bytes == sum(t.nbytes for t in prior.state_dict().values())
    assert found.gradient_bytes == sum(p.grad.nbytes for p in prior.parameters())
    assert found.moment_bytes == sum(m.nbytes for m in moments)
    assert found.bytes == found.weight_bytes + found.gradient_bytes + found.moment_bytes + found.activation_bytes


def test_activations_grow_with_the_part_of_a_batch_that_is_computed_at_once():
    def activations(**changes):
        profile = tiny_profile()
        training = profile.prior.training.model_copy(update=changes)
        return budget.prior_budget(
            profile.model_copy(update={"prior": profile.prior.model_copy(update={"training": training})})
        )

    four, eight, cut = activations(batch=4), activations(batch=8), activations(batch=8, accumulate=2)
    assert eight.activation_bytes == pytest.approx(2 * four.activation_bytes, rel=0.05)
    assert cut.activation_bytes == four.activation_bytes and cut.flops == eight.flops


def test_cache_is_as_large_as_the_one_that_search_keeps():
    priors = [tiny_prior(seed=1), tiny_prior(seed=2)]
    cache = PrivateCache(PriorStack(priors), 3, 5)
    assert budget.cache_bytes(priors[0].settings, 15, torch.float32) == cache.cache.nbytes


def test_t4_profile_fits_a_t4_and_its_day_of_three_hours():
    profile = load_profile("t4")
    for found in (budget.vqvae_budget(profile), budget.prior_budget(profile)):
        assert 1.0 < found.hours < 3.0 and found.bytes < 15 * GIB
    assert budget.search_bytes(profile) < 15 * GIB
    assert budget.counting_bytes(profile) < 15 * GIB


@pytest.mark.parametrize("name", ["t4", "paper"])
def test_table_of_a_profile_adds_up_hours_and_names_every_memory(name):
    profile = load_profile(name)
    rows = {row["what"]: row for row in budget.summary(profile)}
    codec, prior, whole = (
        rows[what]["on a T4 (h)"] for what in ("VQ-VAE", "prior of one source", "training of a method's models")
    )
    assert whole == pytest.approx(codec + 2 * prior)
    for row, key in (("VQ-VAE", "vqvae"), ("prior of one source", "prior")):
        assert rows[row]["assumed rate (TFLOP/s)"] == budget.T4_RATES[key] / 1e12
        assert rows[row]["on a T4 (h)"] == pytest.approx(
            float(rows[row]["operations"]) / budget.T4_RATES[key] / 3600, rel=0.05
        )
    search = rows[f"search, {profile.search.max_rows} particles at once"]["memory (GiB)"]
    assert (
        search == budget.search_bytes(profile) / GIB
        and rows["counting"]["memory (GiB)"] == budget.counting_bytes(profile) / GIB
    )


def test_search_counts_its_likelihood_and_its_decoder():
    likelihood = count_likelihood()
    likelihood.matrix(0)
    kept = {
        id(t): t.nbytes for part in (likelihood, likelihood.backoff) for t in vars(part).values() if torch.is_tensor(t)
    }
    assert budget.counts_bytes(12, len(likelihood.keys)) == sum(kept.values()) - likelihood.backoff.codebook.nbytes
    profile = tiny_profile()
    more = profile.model_copy(
        update={
            "likelihood": profile.likelihood.model_copy(
                update={"counted_seconds": profile.likelihood.counted_seconds + 32}
            )
        }
    )
    # 32 samples make a code.
    assert budget.search_bytes(more) - budget.search_bytes(profile) == budget.counts_bytes(
        12, 8000
    ) - budget.counts_bytes(12, 0)
    assert budget.search_bytes(profile) > likelihood.cache_bytes + budget.cache_bytes(
        profile.prior, profile.search.max_rows
    )


def test_peak_is_of_what_is_held_at_once():
    x = torch.ones(1000)
    assert budget.peak_bytes(lambda: x.add(1).add(1).add(1)) == 2 * x.nbytes
    assert budget.peak_bytes(lambda: [x.add(1), x.add(1), x.add(1)]) == 3 * x.nbytes
    assert budget.peak_bytes(lambda: x.add_(1).view(10, 100)) == 0


def test_paper_profile_counts_half_a_billion_weights_and_names_its_memory():
    found = budget.prior_budget(load_profile("paper"))
    assert 4.5e8 < found.parameters < 6e8 and 15 * GIB < found.bytes < 32 * GIB


def shortened(name, **prior):
    """A profile at batch 1 for two steps; only what is named differs otherwise."""
    profile = load_profile(name)
    two = {"steps": 2, "batch": 1, "accumulate": 1, "checkpoint_seconds": 1e9}
    vqvae = profile.vqvae.model_copy(
        update={"training": profile.vqvae.training.model_copy(update=two), "crop_samples": 16384}
    )
    changed = profile.prior.model_copy(update={"training": profile.prior.training.model_copy(update=two), **prior})
    return profile.model_copy(update={"vqvae": vqvae, "prior": changed})


def test_codec_of_t4_and_paper_trains_two_steps(tmp_path):
    settings = shortened("t4").vqvae
    torch.manual_seed(0)
    history = train(VQVAETask(VQVAE(settings), stems(), 4.0, torch.float32), settings.training, tmp_path, "codec", 0)
    assert len(history) == 2 and history[1]["linear"] >= 0 and history[1]["loss"] > 0


@pytest.mark.parametrize("name, changes", [("t4", {"crop_codes": 512}), ("paper", {"crop_codes": 512, "layers": 1})])
def test_priors_of_t4_and_paper_train_two_steps(tmp_path, name, changes):
    """On shorter crops, and one layer of the 48; memory of the whole is counted above."""
    profile = shortened(name, **changes)
    songs = (torch.randint(2048, (2, 600), generator=seeded()).to(torch.int16),)
    torch.manual_seed(0)
    module = Prior(profile.prior, profile.vqvae.codes)
    history = train(PriorTask(module, CodeSet(songs), 0, torch.float32), profile.prior.training, tmp_path, "prior", 0)
    assert len(history) == 2 and history[0]["nats_per_code"] == pytest.approx(7.62, abs=0.1)


@pytest.fixture
def every_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 12 * GIB or fast_dtype(torch.device("cpu")) != torch.bfloat16,
                    reason="wants 12 GiB of free memory, and a CPU that is fast in Muon's bfloat16 products")  # fmt: skip
def test_paper_prior_of_48_layers_trains_two_steps(tmp_path, every_core):
    """All of its weights, 7 GB with gradients and moments, on a crop and a window of 64 codes."""
    profile = shortened("paper", crop_codes=64, window=64)
    songs = (torch.randint(2048, (2, 100), generator=seeded()).to(torch.int16),)
    torch.manual_seed(0)
    module = Prior(profile.prior, profile.vqvae.codes)
    assert (
        len(module.blocks) == 48
        and sum(p.numel() for p in module.parameters()) == budget.prior_budget(load_profile("paper")).parameters
    )
    before = module.blocks[-1].expand.weight[0].clone()
    history = train(PriorTask(module, CodeSet(songs), 0, torch.float32), profile.prior.training, tmp_path, "prior", 0)
    assert (
        len(history) == 2
        and history[0]["nats_per_code"] == pytest.approx(7.62, abs=0.1)
        and history[1]["nats_per_code"] > 0
    )
    assert not torch.equal(module.blocks[-1].expand.weight[0], before)
