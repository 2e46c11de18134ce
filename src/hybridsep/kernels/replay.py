"""Recording a step once as a CUDA graph and replaying it: one launch in the place of hundreds of kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Replayed:
    """A step that works on tensors of fixed shapes and addresses and never waits for the device.

    Where it is to be recorded, on CUDA, it is after one call, which compiles and allocates what a recording must not, and replayed from then
    on. Else, and inside the recording of a larger step, it is called as it is. It leaves its results in the same tensors every time.
    """

    def __init__(self, step: Callable[[], None], recorded: bool):
        self._step, self._records, self._warm = step, recorded, False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do the step once."""
        if not self._records or not self._warm or torch.cuda.is_current_stream_capturing():
            self._warm = True
            return self._step()
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            self._graph = graph
        self._graph.replay()
