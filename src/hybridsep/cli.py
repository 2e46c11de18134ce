"""The commands. No logic lives here: each reads its arguments, calls the library and prints one summary."""

from __future__ import annotations

import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hybridsep.core.deadline import NEVER, Deadline, OutOfTime
from hybridsep.core.errors import HybridsepError
from hybridsep.core.process import settle_process

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Bayesian separation of two instruments over the codes of a VQ-VAE.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make or fetch songs in Slakh's layout.")
app.add_typer(data_app, name="data")

ProfileOption = Annotated[str, typer.Option("--profile", help="smoke, cpu, or a .yml file")]
RunsOption = Annotated[Path, typer.Option("--runs", help="folder of all runs")]
DataOption = Annotated[Path | None, typer.Option("--data", help="songs in Slakh's layout; synthesised without it")]
TrainOption = Annotated[
    bool, typer.Option("--train", help="train every model here, those too that come with the project")
]
MinutesOption = Annotated[
    float | None,
    typer.Option("--max-minutes", min=0.0, help="stop then, in a state from which the same command goes on"),
]


@data_app.command("synth")
def data_synth(
    out: Path,
    tracks: Annotated[int, typer.Option(min=1)] = 300,
    seconds: Annotated[float, typer.Option(min=1.0)] = 30.0,
    seed: int = 0,
) -> None:
    """Compose and render MiniSlakh: songs of bass and drums in Slakh2100's own layout."""
    from hybridsep.data.minislakh.render import make_minislakh

    make_minislakh(out, tracks, seconds, seed)
    typer.echo(f"{tracks} songs of {seconds:g} s in {out}")


@data_app.command("slakh")
def data_slakh(
    out: Path,
    variant: Annotated[
        str, typer.Option(help="redux (Slakh2100, 104 GB to read) or baby (20 songs at 16 kHz, 0.9 GB)")
    ] = "redux",
    tracks: Annotated[int, typer.Option(min=1)] = 300,
    source: Annotated[str | None, typer.Option(help="another address, or a file, instead of Zenodo's")] = None,
    md5: Annotated[str | None, typer.Option(help="of --source, to check it by")] = None,
    profile: Annotated[str, typer.Option("--profile", help="whose sample rate and instruments are kept")] = "cpu",
) -> None:
    """Fetch real songs: bass and drum stems of Slakh2100 or BabySlakh, out of the streaming archive. Run again, it goes on."""
    from hybridsep.core.profiles import load_profile
    from hybridsep.data.fetch import fetch_slakh

    settings = load_profile(profile)
    report = fetch_slakh(out, variant, tracks, tuple(settings.sources.values()), settings.data.sample_rate, source, md5)
    counts = ", ".join(f"{count} {split}" for split, count in report.tracks.items())
    refused = f", {report.rejected} stems or tracks refused: see {out / 'rejected.csv'}" if report.rejected else ""
    typer.echo(
        f"{report.total} songs in {out} ({counts}){refused}; {report.bytes_read / 1e9:.2f} GB read; archive {report.checked}"
    )


SoundFontsOption = Annotated[list[Path], typer.Option("--soundfont", help="an .sf2 file; may be given several times")]
ExcerptOption = Annotated[float, typer.Option("--seconds", help="length of an excerpt")]
VariantsOption = Annotated[int, typer.Option("--variants", help="excerpts of a song, each played differently")]
VarietyOption = Annotated[
    float, typer.Option(help="share of training stems whose timbre is randomised instead of the SoundFont's own")
]


@data_app.command("midi")
def data_midi(
    out: Path,
    midi: Annotated[Path, typer.Option(help="folder of General MIDI files")],
    soundfont: SoundFontsOption,
    seconds: ExcerptOption = 30.0,
    variants: VariantsOption = 4,
    seed: int = 0,
    variety: VarietyOption = 0.0,
    sample_rate: int = 22050,
    split: Annotated[str | None, typer.Option(help="make train, validation or test songs only")] = None,
) -> None:
    """Render anybody's MIDI files with any SoundFonts. Run again, it goes on."""
    from hybridsep.data.midi import Recipe, make_songs

    made = make_songs(out, midi, Recipe(tuple(soundfont), seconds, variants, seed, sample_rate, variety), split=split)
    typer.echo(made.summary(out))


@data_app.command("people")
def data_people(
    out: Path,
    source: Annotated[
        Path | None, typer.Option(help="freedoom's .wad, a folder of them, or vizdoom's wheel; fetched when not given")
    ] = None,
    soundfont: SoundFontsOption = [],  # noqa: B006 (typer reads it, nobody changes it)
    seconds: ExcerptOption = 30.0,
    variants: VariantsOption = 6,
    seed: int = 0,
    variety: VarietyOption = 0.5,
    sample_rate: int = 22050,
) -> None:
    """Fetch and render songs that people wrote: Freedoom's music with two free SoundFonts. Run again, it goes on."""
    from hybridsep.data.midi import Recipe
    from hybridsep.data.people import make_people

    made = make_people(out, Recipe(tuple(soundfont), seconds, variants, seed, sample_rate, variety), source)
    typer.echo(made.summary(out))


@app.command()
def train(
    method: str,
    profile: ProfileOption = "cpu",
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    max_minutes: MinutesOption = None,
    anew: TrainOption = False,
) -> None:
    """Train a METHOD (lass, lqvae, hybrid or plain-sum), or find it already trained."""
    pipeline = _pipeline(profile, runs, data, max_minutes, anew)
    folder = pipeline.export(method)
    pipeline.write_provenance()
    if pipeline.ranks.first:
        typer.echo(f"model in {folder}")


@app.command()
def separate(
    recording: Annotated[Path, typer.Argument(metavar="IN", readable=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", readable=False)],
    model: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="folder of a trained method, such as runs/cpu/hybrid; the Hybrid that comes with the project without it",
        ),
    ] = None,
    search: Annotated[
        str, typer.Option(help="particle, ancestral, topk or beam; lass-beam or lass-topk as LASS runs them")
    ] = "particle",
    particles: Annotated[int | None, typer.Option(min=1, help="N; the model's own setting when not given")] = None,
    seed: int = 0,
    refine: Annotated[bool, typer.Option(help="Wiener masks, so that the stems sum to the recording")] = True,
    form: Annotated[str, typer.Option("--format", help="wav, flac, ogg or mp3")] = "wav",
    overwrite: bool = False,
) -> None:
    """Separate a recording into stems."""
    # readable=False: what may not be read is refused by the library, in one line, and not by typer in a box with exit status 2.
    from hybridsep.inference.recording import separate_file
    from hybridsep.inference.separator import SearchOptions

    started = time.perf_counter()
    options = SearchOptions(search, particles, seed, "separating")
    found = separate_file(recording, out, model, options, refine, form, overwrite)
    seconds = time.perf_counter() - started
    typer.echo(
        f"{', '.join(map(str, found.paths))}: {found.seconds:.1f} s in {seconds:.1f} s, evidence {found.log_evidence:.3f} nats per code"
    )


@app.command()
def evaluate(
    profile: ProfileOption = "cpu",
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    max_minutes: MinutesOption = None,
    anew: TrainOption = False,
) -> None:
    """Separate held-out mixtures with every method and search and write runs/<profile>/evaluation.csv."""
    from hybridsep.evaluation.rows import summarise
    from hybridsep.pipeline.evaluate import Evaluation

    pipeline = _pipeline(profile, runs, data, max_minutes, anew)
    table = Evaluation(pipeline).table()
    summary = summarise(table, metric="sdr", selection="blind", refine="wiener", reference="real")
    if pipeline.ranks.first:
        typer.echo(summary.to_string(index=False, float_format="%.2f"))
        typer.echo(f"all rows in {pipeline.root / 'evaluation.csv'}")


@app.command()
def record(
    profile: ProfileOption = "cpu",
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder of all records")] = Path("book/record"),
    results: Annotated[Path, typer.Option(help="folder of all studies' tables")] = Path("book/results"),
) -> None:
    """Keep the models of a finished run, in little room and with a model card, where the book and `separate` find them."""
    from hybridsep.pipeline.release import record_run
    from hybridsep.report.model_card import model_card

    folder = record_run(_pipeline(profile, runs, data), out, partial(model_card, results=results))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    typer.echo(f"{size / 1e6:.1f} MB in {folder}")


@app.command()
def book(profile: ProfileOption = "cpu", runs: RunsOption = Path("runs"), anew: TrainOption = False) -> None:
    """Run every chapter and build _build/html/index.html."""
    from hybridsep.report import repository_root
    from hybridsep.report.build import build_book

    started = time.perf_counter()
    page = build_book(profile, repository_root(), runs.absolute(), anew)
    typer.echo(f"{page} built in {(time.perf_counter() - started) / 60:.1f} minutes")


def _pipeline(profile: str, runs: Path, data: Path | None, max_minutes: float | None = None, anew: bool = False):
    from hybridsep.core.profiles import load_profile
    from hybridsep.core.records import RECORDS
    from hybridsep.pipeline.pipeline import Pipeline

    deadline = NEVER if max_minutes is None else Deadline(max_minutes)
    return Pipeline(load_profile(profile), runs, data, deadline, records=None if anew else RECORDS)


def main() -> None:
    """Run a command; bad input ends in one line and exit status 1, Ctrl-C in 130, --max-minutes in one line and 0."""
    settle_process()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app(standalone_mode=True)
    except OutOfTime as stop:
        from hybridsep.core.distributed import ranks_here

        if ranks_here().first:
            print(stop)
    except HybridsepError as error:
        print(f"hybridsep: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = "book" if sys.argv[1:2] == ["book"] else "data"
        print(f"hybridsep: this needs {error.name}: pip install 'hybridsep[{extra}]'", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"hybridsep: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
