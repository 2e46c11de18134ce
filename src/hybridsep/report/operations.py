"""Operations that training takes, counted on tensors that have shapes and no data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hybridsep.core.profiles import Profile, TrainingSettings
from hybridsep.models.prior import Prior
from hybridsep.models.vqvae import VQVAE
from hybridsep.training.codec import WAVEFORMS, VQVAETask
from hybridsep.training.prior import PriorTask


def training_operations(profile: Profile) -> pd.DataFrame:
    """Return parameters and operations of all training steps, of a linear VQ-VAE and of the prior of one source.

    A multiplication and an addition are two operations. One part of a batch is counted, forward and backward.
    """
    codec, prior, no_songs = profile.vqvae, profile.prior, cast(Any, None)
    with torch.device("meta"):
        vqvae, transformer = VQVAE(codec).train(), Prior(prior, codec.codes).train()
        codec_task = VQVAETask(vqvae, no_songs, codec.linear_weight, torch.float32)
        prior_task = PriorTask(transformer, no_songs, 0, torch.float32)
        pairs, crops = (s.training.batch // s.training.accumulate for s in (codec, prior))
        waveforms = torch.empty(WAVEFORMS * pairs, codec.crop_samples)
        codes = torch.empty(crops, prior.crop_codes, dtype=torch.long)
    models: dict[str, tuple[nn.Module, TrainingSettings, Callable[[], Tensor]]] = {
        "VQ-VAE": (vqvae, codec.training, lambda: codec_task.loss(waveforms, quantised=True)[0]),
        "prior of one source": (transformer, prior.training, lambda: prior_task.loss(codes)),
    }
    rows = []
    for name, (module, training, loss) in models.items():
        with FlopCounterMode(display=False) as counter:
            loss().backward()
        parameters = sum(p.numel() for p in module.parameters())
        operations = float(counter.get_total_flops() * training.accumulate * training.steps)
        rows.append({"model": name, "parameters": parameters, "steps": training.steps, "operations": operations})
    return pd.DataFrame(rows)
