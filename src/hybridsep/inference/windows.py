"""Long recordings in windows: where they lie, and how their estimates are joined."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WINDOW_SECONDS = 3.0
OVERLAP_SECONDS = 0.5


@dataclass(frozen=True)
class Windows:
    """Overlapping windows of a recording, spread evenly: the first begins with it, the last ends with it.

    No window is half empty, so that the level of each is that of its sound.
    """

    starts: tuple[int, ...]  # first sample of each window, multiples of the hop
    size: int  # samples of a window, a multiple of the hop, or the search would cut its end off
    fade: int  # samples over which a window gives way to the next
    samples: int  # of the recording

    @classmethod
    def over(cls, samples: int, sample_rate: int, hop: int) -> Windows:
        """Lay as few windows of 3 s as overlap by 0.5 s over a recording, codes of `hop` samples; one where it is no longer than that."""
        codes = -(-samples // hop)
        size = min(codes, -(-int(WINDOW_SECONDS * sample_rate) // hop))
        # A third of a window at most, so that no more than two ever sound at once.
        overlap = min(int(OVERLAP_SECONDS * sample_rate) // hop, size // 3)
        count = -(-(codes - size) // (size - overlap)) + 1
        starts = (round(i * (codes - size) / max(1, count - 1)) * hop for i in range(count))
        return cls(tuple(starts), size * hop, max(1, overlap * hop), samples)

    @classmethod
    def every(cls, step: int, fade: int, samples: int) -> Windows:
        """Lay a window every `step` samples that reaches `fade` samples, at most as many, into the next; the last one ends with the recording."""
        count = max(1, -(-(samples - fade) // step))
        return cls(tuple(range(0, count * step, step)), step + fade, fade, samples)

    def scaled(self, values: int, hop: int) -> Windows:
        """Return the same windows over `values` numbers a code, codes of `hop` samples."""
        starts = tuple(start // hop * values for start in self.starts)
        fade = max(1, self.fade * values // hop)
        return Windows(starts, self.size // hop * values, fade, -(-self.samples // hop) * values)

    def __len__(self) -> int:
        return len(self.starts)

    def cut(self, waveform: Tensor, index: int) -> Tensor:
        """Return window `index` of [..., samples], with zeros for the rest of its last code: [..., size]."""
        part = waveform[..., self.starts[index] : self.starts[index] + self.size]
        return torch.nn.functional.pad(part, (0, self.size - part.shape[-1]))

    def add(self, total: Tensor, index: int, estimate: Tensor) -> None:
        """Add the estimate [..., size] of a window to `total` [..., samples], faded in the middle of what it shares with its neighbours."""
        start = self.starts[index]
        own = min(self.size, self.samples - start)
        total[..., start : start + own] += estimate[..., :own] * self.weights(index)[:own].to(total.device)

    def weights(self, index: int) -> Tensor:
        """Return the share of a window in each of its samples, [size]; those of all windows add up to one."""
        weights = torch.ones(self.size)
        if index > 0:
            weights *= self._rise(self.starts[index - 1] - self.starts[index])
        if index + 1 < len(self):
            weights *= 1 - self._rise(self.starts[index + 1] - self.starts[index])
        return weights

    def _rise(self, offset: int) -> Tensor:
        """From 0 to 1 in the middle of what a window has in common with one that begins `offset` samples after it."""
        middle = (offset + self.size) / 2
        return ((torch.arange(self.size) + 0.5 - middle) / self.fade + 0.5).clamp(0, 1)
