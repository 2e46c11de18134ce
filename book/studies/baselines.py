"""What somebody would use instead: harmonic-percussive masks, learnt spectra, and a network trained on mixtures.

All of them take the mixture y = ½ x1 + ½ x2, waveforms [B, T], apart into sources [2, B, T].
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import librosa
import numpy as np
import pandas as pd
import torch
from rungs import by_song, levels_table
from sklearn.decomposition import non_negative_factorization
from study import Study, cached_rows, cached_tensors, main, sources_of
from torch import Tensor, nn
from torchaudio.models import ConvTasNet
from tqdm import tqdm

from hybridsep.core.device import seeded_generator
from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import method_spec
from hybridsep.data.stems import StemSet, mix
from hybridsep.evaluation.comparisons import interval_columns
from hybridsep.evaluation.protocols import score_estimates
from hybridsep.evaluation.rows import chunk_rows, read_rows, rows_where
from hybridsep.inference.wiener import STFT_SIZE
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import RUNGS, Pipeline

METHOD = "hybrid"
OWN = ("hpss", "nmf", "convtasnet")
CELLS = ("lass", METHOD)
COMPARED = (*product(CELLS, OWN), ("convtasnet", "mixture"))
METRICS = ("sdr", "si_sdr_improvement")
CHUNKS = 30
NMF_COMPONENTS, NMF_SECONDS, NMF_ITERATIONS = 48, 240.0, 200
CROP_SECONDS, BATCH, LEARNING_RATE, WARMUP = 1.5, 4, 2e-3, 50
LIMIT_DB = 30.0
SILENT_POWER = 1e-4
SETTINGS = (NMF_COMPONENTS, NMF_SECONDS, NMF_ITERATIONS, CROP_SECONDS, BATCH, LEARNING_RATE, WARMUP, LIMIT_DB)


def baselines(study: Study) -> None:
    """Score all three on the chunks of the three rungs, beside the recorded scores of the cells; the network trains as long as all of the Hybrid."""
    pipeline, recorded = study.pipeline, study.folder.parent / "rungs" / "scores.csv"
    if not recorded.is_file():
        raise HybridsepError(f"no {recorded}: run the study of the rungs first")
    cells = read_rows(recorded)
    pipeline.separator(METHOD)
    budget = training_seconds(pipeline, METHOD)
    network, of_network = trained_tasnet(pipeline, budget)
    bases, of_bases = learnt_spectra(pipeline)
    separations = {"hpss": hpss, "nmf": bases.separate, "convtasnet": network_separation(network)}
    found = [
        scored(study.evaluation(rung, CHUNKS), name, separate).assign(rung=rung)
        for rung in RUNGS
        for name, separate in separations.items()
    ]
    table = pd.concat(found, ignore_index=True)
    study.write("scores", table[table.metric.isin(METRICS)])
    study.write("levels", pd.concat([levels_table(part) for _, part in table.groupby("rung", sort=False)]))
    study.write("differences", baseline_differences(pd.concat([cells, table], ignore_index=True)))
    steps = of_network["figures"]["steps"]
    known = {
        "hpss": {},
        "nmf": {"training_seconds": of_bases["seconds"], "weights": bases.spectra.size},
        "convtasnet": {"training_seconds": of_network["seconds"], "weights": weights_of(network), "steps": steps},
        METHOD: {"training_seconds": budget, "weights": method_weights(pipeline, METHOD)},
    }
    seconds = table[table.metric == "seconds"].groupby("method").value.mean()
    columns = ["method", "seconds_per_chunk", "training_seconds", "weights", "steps"]
    times = [{"method": name, "seconds_per_chunk": seconds.get(name), **row} for name, row in known.items()]
    study.write("times", pd.DataFrame(times, columns=columns).astype({"weights": "Int64", "steps": "Int64"}))


def scored(evaluation: Evaluation, name: str, separate: Callable[[Tensor], Tensor]) -> pd.DataFrame:
    """Separate all chunks once, and return their scores and the seconds that each of them took."""
    chunks = evaluation.chunks

    def make() -> pd.DataFrame:
        started = time.perf_counter()
        estimates = separate(chunks.mixture)
        seconds = chunk_rows(chunks, name, "", "seconds", (time.perf_counter() - started) / len(chunks))
        return pd.concat([score_estimates(evaluation.chunks, estimates, name), seconds], ignore_index=True)

    trained_on = evaluation.pipeline.stems_step().folder.name
    return cached_rows(evaluation.pipeline, f"baseline-{name}", [chunks.digest, trained_on, SETTINGS], make)


def baseline_differences(scores: pd.DataFrame) -> pd.DataFrame:
    """Return paired differences of SDR, dB, on each rung: the first of each pair of COMPARED minus the other, all refined but the mixture.

    Args:
        scores: rows in the columns of evaluation.csv, and `rung`.

    Returns:
        rung, method, other, source ("mean": of both), mean, low, high (95 % bootstrap interval over songs), std, n (songs), median.
    """

    def score(part: pd.DataFrame, name: str, only: dict[str, str]) -> pd.Series:
        search = {"search": "particle"} if name in CELLS else {}
        refine = "none" if name == "mixture" else "wiener"
        return by_song(rows_where(part, method=name, refine=refine, metric="sdr", reference="real", **search, **only))

    rows = []
    for rung, part in scores.groupby("rung", sort=False):
        for source, only in sources_of(part).items():
            for method, other in COMPARED:
                change = score(part, method, only) - score(part, other, only)
                known = {"rung": rung, "method": method, "other": other, "source": source}
                rows.append({**known, **interval_columns(change.to_numpy()), "median": change.median()})
    return pd.DataFrame(rows)


def training_seconds(pipeline: Pipeline, method: str) -> float:
    """Return the wall time of all that a trained method needed beside the songs: VQ-VAE, codes, priors, counting."""
    kind = method_spec(method).vqvae
    encoded = [f"codes-{kind}-{split}" for split in ("train", "validation")]
    newest = {step.label: step for step in pipeline.cache.finished()}
    steps = [*pipeline.method_steps(method), *(newest[label] for label in encoded if label in newest)]
    return sum(step.record["seconds"] for step in steps)


def weights_of(network: nn.Module) -> int:
    """Return the number of weights of a network."""
    return sum(p.numel() for p in network.parameters())


def method_weights(pipeline: Pipeline, method: str) -> int:
    """Return the number of weights of a method's VQ-VAE and priors; what a likelihood counts is none."""
    return sum(step.record["figures"].get("parameters", 0) for step in pipeline.method_steps(method))


# --- without training ---


def hpss(mixture: Tensor) -> Tensor:
    """Take the harmonic part for bass and the percussive part for drums. Source: Fitzgerald 2010, as in librosa."""
    spectra = librosa.stft(mixture.numpy(), n_fft=STFT_SIZE)
    parts = [np.stack(librosa.decompose.hpss(spectrum)) for spectrum in spectra]
    return 2 * torch.from_numpy(librosa.istft(np.stack(parts, 1), n_fft=STFT_SIZE, length=mixture.shape[-1]))


# --- learnt spectra ---


@dataclass(frozen=True)
class SpectralBases:
    """Spectra of each source learnt from solo recordings, float32 [P, components, bins], each of unit sum."""

    spectra: np.ndarray

    @classmethod
    def fit(cls, stems: StemSet, seed: int) -> SpectralBases:
        """Factorise the magnitudes of random crops of each source."""
        crops = stems.random_pairs(int(NMF_SECONDS / 3), int(3 * stems.sample_rate), seeded_generator(seed)).numpy()
        bases = []
        for source in crops:
            magnitudes = np.concatenate(list(np.abs(librosa.stft(source, n_fft=STFT_SIZE))), 1).T + 1e-6
            _, components = factorised(magnitudes, NMF_COMPONENTS, init="nndsvda", random_state=seed)
            bases.append(components / components.sum(1, keepdims=True))
        return cls(np.stack(bases))

    def separate(self, mixture: Tensor) -> Tensor:
        """Explain the mixture by all spectra; each source's share of the power is its mask."""
        stems, (sources, components, bins) = [], self.spectra.shape
        bases = self.spectra.reshape(-1, bins)
        for waveform in mixture.numpy():
            spectrum = librosa.stft(waveform, n_fft=STFT_SIZE)
            activations, _ = factorised(np.abs(spectrum).T, len(bases), H=bases, update_H=False)
            each = activations.reshape(-1, sources, components)
            power = np.einsum("tpc,pcf->pft", each, self.spectra) ** 2 + 1e-12
            masked = sources * power / power.sum(0) * spectrum
            stems.append(librosa.istft(masked, n_fft=STFT_SIZE, length=len(waveform)))
        return torch.from_numpy(np.stack(stems, 1).astype(np.float32))


def factorised(magnitudes: np.ndarray, components: int, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """Return activations [frames, components] and bases [components, bins] of magnitudes [frames, bins].

    Source: Lee & Seung 2001, multiplicative updates for the Kullback-Leibler divergence, as in scikit-learn.
    """
    shared = {"solver": "mu", "beta_loss": "kullback-leibler", "max_iter": NMF_ITERATIONS, "tol": 0.0}
    activations, bases, _ = non_negative_factorization(magnitudes, n_components=components, **shared, **options)
    return activations, bases


def learnt_spectra(pipeline: Pipeline) -> tuple[SpectralBases, dict]:
    """Return spectra of a pipeline's own sources, learnt once, and the record of that step."""

    def make() -> tuple[dict[str, Tensor], dict]:
        bases = SpectralBases.fit(pipeline.stems("train"), pipeline.profile.seed)
        return {"spectra": torch.from_numpy(bases.spectra)}, {"components": NMF_COMPONENTS}

    settings = [pipeline.stems_step().folder.name, SETTINGS]
    tensors, record = cached_tensors(pipeline, "spectra", settings, make)
    return SpectralBases(tensors["spectra"].numpy()), record


# --- a network trained on mixtures ---


def make_tasnet() -> ConvTasNet:
    """Make a Conv-TasNet of about a million weights, as many as the priors of a method have.

    Source: Luo & Mesgarani 2019 (arXiv 1809.07454).
    """
    shape = {"msk_kernel_size": 3, "msk_num_feats": 96, "msk_num_hidden_feats": 192}
    return ConvTasNet(2, enc_kernel_size=32, enc_num_feats=192, msk_num_layers=7, msk_num_stacks=2, **shape)


def train_tasnet(stems: StemSet, seconds: float, seed: int) -> tuple[ConvTasNet, int]:
    """Train on random mixtures for so many seconds of processor time; return the network and its steps.

    Raises:
        HybridsepError: the loss is not finite.
    """
    torch.manual_seed(seed)
    network = make_tasnet()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    length, steps, started = int(CROP_SECONDS * stems.sample_rate), 0, time.process_time()
    with tqdm(total=round(seconds), desc="Conv-TasNet", unit="s") as bar:
        while (elapsed := time.process_time() - started) < seconds:
            # The rate falls along a cosine of the time that is spent.
            share = min(1.0, (steps + 1) / WARMUP) * 0.5 * (1 + np.cos(np.pi * elapsed / seconds))
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * share
            sources = stems.random_pairs(BATCH, length, seeded_generator(seed, steps))
            loss = noise_ratio(separate_by(network, mix(sources)), sources)
            if not torch.isfinite(loss):
                raise HybridsepError(f"Conv-TasNet: loss is {loss.item()} at step {steps}; lower LEARNING_RATE")
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            steps += 1
            bar.update(round(elapsed) - bar.n)
    return network.eval(), steps


def noise_ratio(estimate: Tensor, target: Tensor) -> Tensor:
    """Return the loss of training: mean noise-to-signal ratio in dB of [P, B, T] over sources and examples.

    Better than LIMIT_DB an example is worth no more, and a silent source counts as one of SILENT_POWER.

    Source: Wisdom et al. 2020 (arXiv 2006.12701), eq. 2, with their soft threshold.
    """
    power = target.square().mean(-1) + SILENT_POWER
    error = (estimate - target).square().mean(-1)
    return 10 * ((error + 10 ** (-LIMIT_DB / 10) * power) / power).log10().mean()


def separate_by(network: ConvTasNet, mixture: Tensor) -> Tensor:
    """Separate by a network: [B, T] -> [2, B, T], sources in the order of its training."""
    return 2 * network(mixture[:, None]).transpose(0, 1)


def network_separation(network: ConvTasNet) -> Callable[[Tensor], Tensor]:
    """Return `separate_by` without gradients."""
    return torch.no_grad()(lambda mixture: separate_by(network, mixture))


def trained_tasnet(pipeline: Pipeline, seconds: float) -> tuple[ConvTasNet, dict]:
    """Return the network trained once on mixtures of a pipeline's own sources, and the record of that step."""

    def make() -> tuple[dict[str, Tensor], dict]:
        trained, steps = train_tasnet(pipeline.stems("train"), seconds, pipeline.profile.seed)
        return trained.state_dict(), {"steps": steps}

    settings = [pipeline.stems_step().folder.name, round(seconds), SETTINGS]
    weights, record = cached_tensors(pipeline, "convtasnet", settings, make)
    network = make_tasnet()
    network.load_state_dict(weights)
    return network.eval(), record


if __name__ == "__main__":
    main(baselines)
