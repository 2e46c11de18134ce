"""What somebody would use instead: harmonic-percussive masks, learnt spectra, and a network trained on mixtures.

All of them see and make waveforms [B, T] of which the mixture is the mean, y = ½ x1 + ½ x2, like everything else here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import librosa
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save
from sklearn.decomposition import NMF
from torch import Tensor, nn
from torchaudio.models import ConvTasNet
from tqdm import tqdm

from hybridsep.core.device import seeded_generator
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import load_weights, write_atomically
from hybridsep.core.profiles import method_spec
from hybridsep.data.stems import StemSet, mix
from hybridsep.evaluation.comparisons import SOURCES_MEAN, interval_columns, song_values
from hybridsep.inference.wiener import STFT_SIZE
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.pipeline.steps import Step
from hybridsep.studies import Study
from hybridsep.studies.comparison import CHUNKS

METHOD = "hybrid"
CEILING, FLOOR = "codec-linear", "mixture"  # of METHOD, among `Evaluation.references`
COMPARED = (*((METHOD, other) for other in ("hpss", "nmf", "convtasnet", CEILING, FLOOR)), ("convtasnet", CEILING))
NMF_COMPONENTS = 48
NMF_SECONDS = 240.0
NMF_ITERATIONS = 200
TASNET_CROP_SECONDS = 1.5
TASNET_BATCH = 4
TASNET_RATE = 2e-3
TASNET_LIMIT_DB = 30.0
SILENT_POWER = 1e-4


def hpss(mixture: Tensor) -> Tensor:
    """The harmonic part as bass and the percussive part as drums: [B, T] -> [2, B, T]. Source: Fitzgerald 2010, as librosa has it."""
    spectra = librosa.stft(mixture.numpy(), n_fft=STFT_SIZE)
    parts = [np.stack(librosa.decompose.hpss(spectrum)) for spectrum in spectra]
    return 2 * torch.from_numpy(librosa.istft(np.stack(parts, 1), n_fft=STFT_SIZE, length=mixture.shape[-1]))


@dataclass(frozen=True)
class SpectralBases:
    """Spectra of each source learnt from solo recordings, [P, components, bins]."""

    spectra: np.ndarray

    @classmethod
    def fit(cls, stems: StemSet, seed: int) -> SpectralBases:
        """Non-negative matrix factorisation of magnitudes, Kullback-Leibler divergence (Lee & Seung 2001)."""
        length = int(3 * stems.sample_rate)
        crops = stems.random_pairs(int(NMF_SECONDS / 3), length, seeded_generator(seed)).numpy()
        bases = [
            _factorise(np.concatenate(list(np.abs(librosa.stft(source, n_fft=STFT_SIZE))), 1), seed) for source in crops
        ]
        return cls(np.stack(bases))

    def separate(self, mixture: Tensor) -> Tensor:
        """Activations of all spectra explain the mixture; each source's share of the power is its mask: [B, T] -> [2, B, T]."""
        stems = []
        everything = self.spectra.reshape(-1, self.spectra.shape[-1])
        for waveform in mixture.numpy():
            spectrum = librosa.stft(waveform, n_fft=STFT_SIZE)
            activations = _activations(np.abs(spectrum).T, everything).reshape(len(spectrum.T), len(self.spectra), -1)
            power = np.einsum("tpc,pcf->pft", activations, self.spectra) ** 2 + 1e-12
            masked = len(power) * power / power.sum(0) * spectrum
            stems.append(librosa.istft(masked, n_fft=STFT_SIZE, length=len(waveform)))
        return torch.from_numpy(np.stack(stems, 1).astype(np.float32))


def _factorise(magnitudes: np.ndarray, seed: int) -> np.ndarray:
    """Bases [components, bins] of magnitudes [bins, frames], each of unit sum."""
    model = NMF(
        NMF_COMPONENTS,
        init="nndsvda",
        solver="mu",
        beta_loss="kullback-leibler",
        max_iter=NMF_ITERATIONS,
        random_state=seed,
        tol=0,
    )
    model.fit(magnitudes.T + 1e-6)
    return model.components_ / model.components_.sum(1, keepdims=True)


def _activations(magnitudes: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Multiplicative updates of activations [frames, components] with the bases kept: Lee & Seung 2001, for Kullback-Leibler."""
    activations = np.full((len(magnitudes), len(bases)), magnitudes.sum(1, keepdims=True) / len(bases))
    total = bases.sum(1)
    for _ in range(NMF_ITERATIONS):
        activations *= (magnitudes / (activations @ bases + 1e-9)) @ bases.T / total
    return activations


def make_tasnet() -> ConvTasNet:
    """A Conv-TasNet (Luo & Mesgarani 2019, arXiv 1809.07454) of about a million weights, as many as the priors of a method have."""
    return ConvTasNet(
        2,
        enc_kernel_size=32,
        enc_num_feats=192,
        msk_kernel_size=3,
        msk_num_feats=96,
        msk_num_hidden_feats=192,
        msk_num_layers=7,
        msk_num_stacks=2,
    )


def train_tasnet(stems: StemSet, seconds: float, seed: int) -> tuple[ConvTasNet, int]:
    """Train on random mixtures for so many seconds of wall time; returns the network and its steps.

    Raises:
        HybridsepError: the loss is not finite.
    """
    torch.manual_seed(seed)
    network = make_tasnet()
    optimiser = torch.optim.AdamW(network.parameters(), lr=TASNET_RATE, weight_decay=0.0)
    length, steps, started = int(TASNET_CROP_SECONDS * stems.sample_rate), 0, time.monotonic()
    with tqdm(total=round(seconds), desc="Conv-TasNet", unit="s") as bar:
        while (elapsed := time.monotonic() - started) < seconds:
            # The rate falls along a cosine of the time that is spent.
            for group in optimiser.param_groups:
                group["lr"] = TASNET_RATE * min(1.0, (steps + 1) / 50) * 0.5 * (1 + np.cos(np.pi * elapsed / seconds))
            sources = stems.random_pairs(TASNET_BATCH, length, seeded_generator(seed, steps))
            loss = noise_ratio(separate_by(network, mix(sources)), sources)
            if not torch.isfinite(loss):
                raise HybridsepError(f"Conv-TasNet: loss is {loss.item()} at step {steps}")
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            steps += 1
            bar.set_postfix(loss_db=f"{loss.item():.2f}", steps=steps, refresh=False)
            bar.update(round(elapsed) - bar.n)
    return network.eval(), steps


def noise_ratio(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean over sources and examples of the noise-to-signal ratio in dB, what the network is trained to make small: [P, B, T] -> scalar.

    Better than TASNET_LIMIT_DB an example is worth no more, and a source that is silent counts as one of SILENT_POWER.

    Source: Wisdom et al. 2020 (arXiv 2006.12701), eq. 2, with their soft threshold.
    """
    power = target.square().mean(-1) + SILENT_POWER
    error = (estimate - target).square().mean(-1)
    return 10 * ((error + 10 ** (-TASNET_LIMIT_DB / 10) * power) / power).log10().mean()


def separate_by(network: ConvTasNet, mixture: Tensor) -> Tensor:
    """[B, T] -> [2, B, T]; sources in the order that the network was trained with."""
    return 2 * network(mixture[:, None]).transpose(0, 1)


def baselines(study: Study) -> None:
    """All three on the chunks of the 2 × 2 beside the Hybrid, the network trained for as long as all of the Hybrid's training took."""
    evaluation, pipeline = study.evaluation(chunks=CHUNKS), study.pipeline
    stems = pipeline.stems("train")
    pipeline.separator(METHOD)
    budget = training_seconds(pipeline, METHOD)
    network, bases = trained_tasnet(pipeline, stems, budget), learnt_spectra(pipeline, stems)

    def by_network(mixture: Tensor) -> Tensor:
        with torch.no_grad():
            return separate_by(network, mixture)

    taught, spectra, hybrid = (
        tasnet_step(pipeline, budget).record,
        spectra_step(pipeline).record,
        evaluation.blind_run(METHOD),
    )
    learnt = {
        "hpss": {},
        "nmf": {"training_seconds": spectra["seconds"], "weights": bases.spectra.size},
        "convtasnet": {
            "training_seconds": taught["seconds"],
            "weights": _weights(network),
            "steps": taught["figures"]["steps"],
        },
        METHOD: {"training_seconds": budget, "weights": _method_weights(pipeline, METHOD)},
    }
    rows, seconds = [hybrid.rows, evaluation.references()], {METHOD: hybrid.figures["seconds_per_chunk"]}
    for name, separate in (("hpss", hpss), ("nmf", bases.separate), ("convtasnet", by_network)):
        started = time.perf_counter()
        estimates = separate(evaluation.chunks.mixture)
        seconds[name] = (time.perf_counter() - started) / len(evaluation.chunks)
        rows.append(evaluation.score_estimates(name, estimates))
    scores = pd.concat(rows, ignore_index=True)
    times = pd.DataFrame(
        [{"method": name, "seconds_per_chunk": seconds[name], **known} for name, known in learnt.items()]
    )
    study.write("scores", scores)
    study.write("differences", baseline_differences(scores))
    study.write("times", times.astype({"weights": "Int64", "steps": "Int64"}))


def baseline_differences(scores: pd.DataFrame) -> pd.DataFrame:
    """Paired differences of SDR, dB: the Hybrid, blind and refined, minus the baselines' own estimates, the codec ceiling and the mixture.

    Args:
        scores: rows in the columns of evaluation.csv.

    Returns:
        method, other (one of COMPARED: `method` minus `other`), source ("mean": of both), mean, low, high (95 % bootstrap interval over
        songs), std and n (songs).
    """
    rows = []
    for source in (SOURCES_MEAN, *dict.fromkeys(s for s in scores.source if s)):
        only = {"metric": "sdr", "reference": "real"} | ({} if source == SOURCES_MEAN else {"source": source})
        for pair in COMPARED:
            first, second = (
                song_values(scores, method=name, refine="wiener" if name == METHOD else "none", **only) for name in pair
            )
            rows.append(
                {
                    **dict(zip(("method", "other"), pair, strict=True)),
                    "source": source,
                    **interval_columns((first - second).to_numpy()),
                }
            )
    return pd.DataFrame(rows)


def training_seconds(pipeline: Pipeline, method: str) -> float:
    """Wall time of everything that a trained method needed beside the songs: its VQ-VAE, encoding, priors, counting."""
    spec = method_spec(method)
    steps = [pipeline.vqvae_step(spec.vqvae), pipeline.likelihood_step(spec.vqvae, spec.likelihood)]
    steps += [pipeline.prior_step(spec.vqvae, source) for source in pipeline.profile.source_names]
    steps += [
        s
        for s in pipeline.cache.finished()
        if s.label in (f"codes-{spec.vqvae}-train", f"codes-{spec.vqvae}-validation")
    ]
    return sum(step.record["seconds"] for step in steps)


def tasnet_step(pipeline: Pipeline, seconds: float) -> Step:
    """Where a network trained for so many seconds is kept."""
    return pipeline.cache.step(
        "convtasnet",
        pipeline.vqvae_step("linear").folder.name,
        round(seconds),
        TASNET_BATCH,
        TASNET_RATE,
        TASNET_CROP_SECONDS,
        TASNET_LIMIT_DB,
    )


def trained_tasnet(pipeline: Pipeline, stems: StemSet, seconds: float) -> ConvTasNet:
    """The network trained on mixtures of a pipeline's own sources, made once."""
    step = tasnet_step(pipeline, seconds)

    def make() -> dict:
        network, steps = train_tasnet(stems, seconds, pipeline.profile.seed)
        write_atomically(
            step.folder / "model.safetensors", save({k: v.contiguous() for k, v in network.state_dict().items()})
        )
        return {"steps": steps}

    pipeline.cache.make(step, make)
    network = make_tasnet()
    network.load_state_dict(load_weights(step.folder / "model.safetensors"))
    return network.eval()


def spectra_step(pipeline: Pipeline) -> Step:
    """Where learnt spectra are kept."""
    return pipeline.cache.step(
        "spectra", pipeline.vqvae_step("linear").folder.name, NMF_COMPONENTS, NMF_SECONDS, NMF_ITERATIONS
    )


def learnt_spectra(pipeline: Pipeline, stems: StemSet) -> SpectralBases:
    """Spectra of a pipeline's own sources, made once."""
    step = spectra_step(pipeline)

    def make() -> dict:
        spectra = SpectralBases.fit(stems, pipeline.profile.seed).spectra
        write_atomically(step.folder / "spectra.safetensors", save({"spectra": torch.from_numpy(spectra).contiguous()}))
        return {"components": NMF_COMPONENTS}

    pipeline.cache.make(step, make)
    return SpectralBases(load_weights(step.folder / "spectra.safetensors")["spectra"].numpy())


def _weights(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _method_weights(pipeline: Pipeline, method: str) -> int:
    """Weights of a method's VQ-VAE and priors; what a likelihood counts is none."""
    return sum(step.record["figures"].get("parameters", 0) for step in pipeline.method_steps(method))
