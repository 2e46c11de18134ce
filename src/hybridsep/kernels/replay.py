"""Recording a step once as a CUDA graph and replaying it: one launch in the place of hundreds of kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Replayed:
    """A step that works on tensors of fixed shapes and addresses and never waits for the device.

    On CUDA it is recorded after some calls, which compile and allocate what a recording must not, and replayed from then on. On other
    devices, and inside the recording of a larger step, it is called as it is.

    Args:
        step: takes and returns nothing; leaves its results in the same tensors every time.
        device: where it computes.
        warm_up: calls before the recording.
    """

    def __init__(self, step: Callable[[], None], device: torch.device, warm_up: int = 1):
        self._step, self._records, self._calls_left = step, device.type == "cuda", warm_up
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do the step once."""
        if (
            not self._records
            or self._graph is None
            and self._calls_left > 0
            or torch.cuda.is_current_stream_capturing()
        ):
            self._calls_left -= 1
            return self._step()
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            self._graph = graph
        self._graph.replay()
