"""The scores of the smoke profile as they once were, for telling a change of them from the accident of another processor.

    python tests/helpers/smoke_reference.py RUNS/smoke      write them anew from a finished run, after a change that is meant to change them

The same machine makes the same run bit for bit (test_pipeline.py), so there every mean over chunks, of every cell and search, is what is
stored. Another processor rounds elsewhere, and training and search carry that on: there means over sources, and over all cells and searches of
what is separated, are compared, each kind of signal within a tolerance of its own.
"""

import json
import platform
import sys
from pathlib import Path

import pandas as pd
import torch

REFERENCE = Path(__file__).parents[1] / "smoke" / "smoke_reference.csv"
CELLS, MACHINE = (Path(__file__).parents[1] / "smoke" / name for name in ("smoke_cells.csv", "smoke_machine.json"))
CELL_KEYS = ["method", "search", "selection", "refine", "source", "reference", "metric"]
CELL_TOLERANCE = 2e-4  # dB, nats and so on: the stored figures have four decimals
METRICS = ("sdr", "si_sdr", "sir", "sar", "isr", "si_sdr_improvement", "stft_distance", "nan_windows", "log_evidence")
KEYS = ["signal", "name", "selection", "refine", "reference", "metric"]
SIGNALS = {"mixture": "songs", "irm": "songs", "codec-plain": "codec", "codec-linear": "codec"}
# dB. With the instructions of an older processor (ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2) songs scored
# the same to four decimals and codecs up to 0.58 dB off, in their SIR; theirs is twice that. Nobody measured what is separated.
TOLERANCE_DB = {"songs": 0.01, "codec": 1.2, "separated": 2.0}
# What a dB is worth in the units of metrics that have others; the codecs' distance of spectra was up to 0.015 off.
UNITS = {"stft_distance": 0.03, "nan_windows": 0.03, "log_evidence": 0.2}


def read(folder: Path) -> pd.DataFrame:
    """evaluation.csv of a run."""
    return pd.read_csv(folder / "evaluation.csv", keep_default_na=False, na_values=["nan"])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over chunks and sources: of single signals, and over all cells and searches of what is separated.

    Returns:
        signal ("songs": nothing trained in it; "codec"; "separated"), name, selection, refine, reference, metric, value.
    """
    rows = table[table.metric.isin(METRICS)]
    single = rows.method.isin(SIGNALS)
    rows = rows.assign(signal=rows.method.map(SIGNALS).fillna("separated"), name=rows.method.where(single, "all"))
    # Beyond 100 dB there is nothing but rounding: the mixture has no artefacts.
    return rows.assign(value=rows.value.clip(upper=100.0)).groupby(KEYS).value.mean().reset_index()


def deviations(found: pd.DataFrame) -> pd.DataFrame:
    """What differs from the stored reference, as a share of its tolerance; NaN for what is there no more.

    Args:
        found: from `summary`.
    """
    both = pd.read_csv(REFERENCE, keep_default_na=False).merge(
        found, on=KEYS, how="left", suffixes=("_stored", "_found")
    )
    tolerance = both.signal.map(TOLERANCE_DB) * both.metric.map(UNITS).fillna(1.0)
    return both.assign(share=(both.value_found - both.value_stored).abs() / tolerance)


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Means over chunks of every score: CELL_KEYS and value."""
    rows = table[table.metric.isin(METRICS)]
    return rows.assign(value=rows.value.clip(upper=100.0)).groupby(CELL_KEYS).value.mean().reset_index()


def cell_deviations(found: pd.DataFrame) -> pd.DataFrame:
    """What differs from the stored cells, or is in one of the two alone.

    Args:
        found: from `cells`.
    """
    both = pd.read_csv(CELLS, keep_default_na=False).merge(
        found, on=CELL_KEYS, how="outer", suffixes=("_stored", "_found")
    )
    return both[~((both.value_found - both.value_stored).abs() <= CELL_TOLERANCE)]


def machine(run: Path) -> dict[str, object]:
    """What decides how a run on this machine rounds: its processor, its threads and the version of torch."""
    known = json.loads((run / "provenance.json").read_text())
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in _processor_lines())}
    kind = [cpu.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "hardware": known["hardware"],
        "threads": known["threads"],
        "torch": torch.__version__,
        "processor": [platform.machine(), *kind],
        "instructions": capability,
    }


def _processor_lines() -> list[str]:
    """The first processor's lines of Linux's list of them; none elsewhere."""
    listed = Path("/proc/cpuinfo")
    return listed.read_text().split("\n\n")[0].splitlines() if listed.is_file() else []


def stored_here(run: Path) -> bool:
    """Whether the stored cells come from a machine like this one."""
    return json.loads(MACHINE.read_text()) == machine(run)


if __name__ == "__main__":
    finished = Path(sys.argv[1])
    summary(read(finished)).to_csv(REFERENCE, index=False, float_format="%.4f")
    cells(read(finished)).to_csv(CELLS, index=False, float_format="%.4f")
    MACHINE.write_text(json.dumps(machine(finished), indent=1) + "\n")
