"""The commands. No logic lives here: each reads its arguments, calls the library and prints one summary."""

import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from hybridsep.core.deadline import NEVER, Deadline, OutOfTime
from hybridsep.core.errors import HybridsepError
from hybridsep.core.process import settle_process

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Separate two instruments over the codes of a VQ-VAE."
)
data_app = typer.Typer(no_args_is_help=True, help="Make or fetch songs in Slakh's layout.")
app.add_typer(data_app, name="data")

option, RUNS = typer.Option, Path("runs")
Tracks = Annotated[int, option(min=1)]
Profile = Annotated[str, option("--profile", help="smoke, quick, cpu, t4, paper, or a .yml file")]
Runs = Annotated[Path, option("--runs", help="folder of all runs")]
Data = Annotated[Path | None, option("--data", help="songs in Slakh's layout; synthesised without it")]
Anew = Annotated[bool, option("--train", help="train every model here, those too that come with the project")]
Limit = Annotated[float | None, option("--max-minutes", min=0.0, help="stop then; the same command goes on")]
SoundFonts = Annotated[list[Path], option("--soundfont", help="an .sf2 file; may be given several times")]
Seconds = Annotated[float, option(min=1.0, help="length of a song or excerpt")]
Variants = Annotated[int, option("--variants", help="excerpts of a song, each played differently")]
Variety = Annotated[float, option(help="share of training stems with a random timbre in place of the SoundFont's own")]


@data_app.command("synth")
def data_synth(out: Path, tracks: Tracks = 300, seconds: Seconds = 30.0, seed: int = 0) -> None:
    """Compose and render MiniSlakh: songs of bass and drums in Slakh2100's own layout."""
    from hybridsep.data.minislakh.render import make_minislakh

    make_minislakh(out, tracks, seconds, seed)
    print(f"{tracks} songs of {seconds:g} s in {out}")


@data_app.command("slakh")
def data_slakh(
    out: Path,
    variant: Annotated[str, option(help="redux (Slakh2100, 104 GB to read) or baby (20 songs, 0.9 GB)")] = "redux",
    tracks: Tracks = 300,
    source: Annotated[str | None, option(help="another address, or a file, instead of Zenodo's")] = None,
    md5: Annotated[str | None, option(help="of --source, to check it by")] = None,
    profile: Annotated[str, option("--profile", help="whose sample rate and instruments are kept")] = "cpu",
) -> None:
    """Fetch real songs: bass and drum stems of Slakh2100 or BabySlakh, out of the streaming archive. Run again, it goes on."""
    from hybridsep.core.profiles import load_profile
    from hybridsep.data.fetch import fetch_slakh

    settings = load_profile(profile)
    report = fetch_slakh(out, variant, tracks, tuple(settings.sources.values()), settings.data.sample_rate, source, md5)
    print(report.summary(out))


@data_app.command("midi")
def data_midi(
    out: Path,
    midi: Annotated[Path, option(help="folder of General MIDI files")],
    soundfont: SoundFonts,
    seconds: Seconds = 30.0,
    variants: Variants = 4,
    seed: int = 0,
    variety: Variety = 0.0,
    sample_rate: int = 22050,
    split: Annotated[str | None, option(help="make train, validation or test songs only")] = None,
) -> None:
    """Render anybody's MIDI files with any SoundFonts. Run again, it goes on."""
    from hybridsep.data.midi import Recipe, make_songs

    made = make_songs(out, midi, Recipe(tuple(soundfont), seconds, variants, seed, sample_rate, variety), split=split)
    print(made.summary(out))


@data_app.command("people")
def data_people(
    out: Path,
    source: Annotated[Path | None, option(help="freedoom's .wad or vizdoom's wheel; fetched without it")] = None,
    soundfont: SoundFonts = [],  # noqa: B006 (typer reads it, nobody changes it)
    seconds: Seconds = 30.0,
    variants: Variants = 6,
    seed: int = 0,
    variety: Variety = 0.5,
    sample_rate: int = 22050,
) -> None:
    """Fetch and render songs that people wrote: Freedoom's music with two free SoundFonts. Run again, it goes on."""
    from hybridsep.data.midi import Recipe
    from hybridsep.data.people import make_people

    made = make_people(out, Recipe(tuple(soundfont), seconds, variants, seed, sample_rate, variety), source)
    print(made.summary(out))


@app.command()
def train(
    method: str, profile: Profile = "cpu", data: Data = None, runs: Runs = RUNS, limit: Limit = None, anew: Anew = False
) -> None:
    """Train a METHOD (lass, lqvae, hybrid or plain-sum), or find it already trained."""
    pipeline = _pipeline(profile, runs, data, limit, anew)
    folder = pipeline.export(method)
    pipeline.write_provenance()
    if pipeline.ranks.first:
        print(f"model in {folder}")


@app.command()
def separate(
    recording: Annotated[Path, typer.Argument(metavar="IN", readable=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", readable=False)],
    model: Annotated[Path | None, option(readable=False, help="as runs/cpu/hybrid; else the shipped Hybrid")] = None,
    search: Annotated[str, option(help="particle, ancestral, topk, beam, lass-beam, lass-topk")] = "particle",
    particles: Annotated[int | None, option(min=1, help="N; the model's own setting when not given")] = None,
    seed: int = 0,
    refine: Annotated[bool, option(help="Wiener masks, so that the stems sum to the recording")] = True,
    form: Annotated[str, option("--format", help="wav, flac, ogg or mp3")] = "wav",
    overwrite: bool = False,
    uncertainty: Annotated[bool, option("--uncertainty", help="write uncertainty.csv beside the stems")] = False,
) -> None:
    """Separate a recording into stems."""
    # readable=False: the library refuses what may not be read in one line, typer would in a box with exit status 2.
    from hybridsep.inference.recording import separate_file
    from hybridsep.inference.separator import SearchOptions

    started = time.perf_counter()
    options = SearchOptions(search, particles, seed, "separating")
    found = separate_file(recording, out, model, options, refine, form, overwrite, uncertainty)
    times = f"{found.seconds:.1f} s in {time.perf_counter() - started:.1f} s"
    print(f"{', '.join(map(str, found.paths))}: {times}, evidence {found.log_evidence:.3f} nats per code")


@app.command()
def evaluate(
    profile: Profile = "cpu", data: Data = None, runs: Runs = RUNS, limit: Limit = None, anew: Anew = False
) -> None:
    """Separate held-out mixtures with every method and search and write runs/<profile>/evaluation.csv.

    Where the models were trained on songs that people wrote too, other such songs are a second rung: evaluation-people.csv.
    """
    from hybridsep.evaluation.comparisons import BLIND
    from hybridsep.evaluation.rows import summarise
    from hybridsep.pipeline.evaluate import Evaluation

    pipeline = _pipeline(profile, runs, data, limit, anew)
    for rung in ("test", "people") if pipeline.profile.data.people and not data else ("test",):
        evaluation = Evaluation(pipeline, rung)
        summary = summarise(evaluation.table(), **BLIND, refine="wiener")
        if pipeline.ranks.first:
            print(summary.to_string(index=False, float_format="%.2f"))
            print(f"all rows in {evaluation.file('evaluation')}")


@app.command()
def record(
    profile: Profile = "cpu",
    data: Data = None,
    runs: Runs = RUNS,
    out: Annotated[Path, option(help="folder of all records")] = Path("book/record"),
    results: Annotated[Path, option(help="folder of all studies' tables")] = Path("book/results"),
) -> None:
    """Keep the models of a finished run, in little room and with a model card, where the book and `separate` find them."""
    from hybridsep.pipeline.record import record_run
    from hybridsep.report.model_card import model_card

    folder = record_run(_pipeline(profile, runs, data), out, lambda run, made: model_card(run, made, results))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB in {folder}")


@app.command()
def book(profile: Profile = "cpu", runs: Runs = RUNS, anew: Anew = False) -> None:
    """Run every chapter and build _build/html/index.html."""
    from hybridsep.report import repository_root
    from hybridsep.report.build import build_book

    started = time.perf_counter()
    page = build_book(profile, repository_root(), runs.absolute(), anew)
    print(f"{page} built in {(time.perf_counter() - started) / 60:.1f} minutes")


def _pipeline(profile: str, runs: Path, data: Path | None, minutes: float | None = None, anew: bool = False):
    from hybridsep.core.profiles import load_profile
    from hybridsep.core.records import RECORDS
    from hybridsep.pipeline.pipeline import Pipeline

    deadline = NEVER if minutes is None else Deadline(minutes)
    return Pipeline(load_profile(profile), runs, data, deadline, records=None if anew else RECORDS)


def main() -> None:
    """Run a command; bad input ends in one line and exit status 1, Ctrl-C in 130, --max-minutes in one line and 0."""
    settle_process()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app(standalone_mode=True)  # ends in SystemExit
    except OutOfTime as stop:
        from hybridsep.core.distributed import ranks_here

        return print(stop) if ranks_here().first else None
    except ModuleNotFoundError as error:
        extra = "book" if sys.argv[1] in ("book", "record") else "data"
        what = f"this needs {error.name}: pip install 'hybridsep[{extra}]'"
    except HybridsepError as error:
        what = str(error)
    except OSError as error:
        what = ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
    print(f"hybridsep: {what}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
