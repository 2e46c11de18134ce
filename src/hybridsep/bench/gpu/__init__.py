"""What a GPU has to show, in calls of some minutes: `python -m hybridsep.bench.gpu all`, again and again until nothing is left.

Every stage is a list of parts. What a part found lies in OUT/<stage>.json, what is done in OUT/state.json.
"""

from hybridsep.bench.gpu.tables import GpuTable, gpu_tables

__all__ = ["GpuTable", "gpu_tables"]
