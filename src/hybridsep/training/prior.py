"""What one training step of a prior is."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridsep.core.device import lowered
from hybridsep.core.distributed import WHOLE, Part
from hybridsep.data.codes import CodeSet
from hybridsep.models.prior import Prior
from hybridsep.training.loop import StepResult


class PriorTask:
    """Next-code cross-entropy, in float32, on random crops of one source's codes, each `code_seconds` long; 0 where that is not known."""

    def __init__(self, module: Prior, codes: CodeSet, source: int, dtype: torch.dtype, code_seconds: float = 0.0):
        self.module, self.codes, self.source, self.dtype = module, codes, source, dtype
        self.device = module.head.weight.device
        self.audio_seconds = module.settings.training.batch * module.settings.crop_codes * code_seconds

    def step(self, number: int, generator: torch.Generator, part: Part = WHOLE) -> StepResult:
        """Mean negative log-likelihood of a part of a batch of crops, nats per code."""
        settings = self.module.settings
        batch = self.codes.random_crops(self.source, settings.training.batch, settings.crop_codes, generator)
        loss = self.loss(part.of(batch).to(self.device))
        return StepResult(loss, {"nats_per_code": loss.item()})

    def loss(self, batch: Tensor) -> Tensor:
        """Mean negative log-likelihood of codes int64 [B, T], nats per code."""
        with lowered(batch.device, self.dtype):
            logits = self.module(batch)
        return F.cross_entropy(logits.float().flatten(0, 1), batch.flatten())

    def after_step(self, number: int, generator: torch.Generator) -> dict[str, float]:
        """Nothing to do."""
        return {}
