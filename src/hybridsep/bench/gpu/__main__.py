"""The command: `python -m hybridsep.bench.gpu STAGE`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hybridsep.core.errors import HybridsepError

app = typer.Typer(add_completion=False, no_args_is_help=True)
ALL = "all"


@app.command()
def measure(
    stage: Annotated[
        str, typer.Argument(help="verify, kernels, decode, train, evaluate, or all of them one after the other")
    ],
    out: Annotated[Path, typer.Option("--out", help="folder of the results")] = Path("book/results/gpu"),
    runs: Annotated[Path, typer.Option("--runs", help="folder of all runs; keep it between the calls")] = Path("runs"),
    minutes: Annotated[
        float, typer.Option(min=0.0, help="for this call; what is thought not to fit into them is left for the next")
    ] = 9.0,
    quick: Annotated[bool, typer.Option("--quick", help="tiny sizes, on any device, to see that it runs")] = False,
    again: Annotated[bool, typer.Option("--again", help="measure the stage's parts anew")] = False,
) -> None:
    """Check and measure this GPU. Run the same command again until nothing is left."""
    # Before the first matrix product: cuBLAS repeats itself only with workspaces of a fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from hybridsep.bench.gpu import decode, evaluate, kernels, train, verify
    from hybridsep.bench.gpu.session import Session

    stages = {
        "verify": verify.parts,
        "kernels": kernels.parts,
        "decode": decode.parts,
        "train": train.parts,
        "evaluate": evaluate.parts,
    }
    if stage not in (*stages, ALL):
        raise HybridsepError(f"unknown stage '{stage}': choose one of {', '.join(stages)} or {ALL}")
    session, right = Session(out, runs, minutes, quick, typer.echo), True
    for name in stages if stage == ALL else [stage]:
        if again:
            session.forget(name)
        right &= session.run(name, stages[name](session))
        if session.unfinished:
            break
    if not right:
        raise typer.Exit(1)


def main() -> None:
    """Run the command; what cannot be done ends in one line and exit status 1."""
    try:
        app()
    except HybridsepError as error:
        print(f"hybridsep: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
