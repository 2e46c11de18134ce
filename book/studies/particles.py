"""How many particles are enough: the Hybrid's filter from 1 to 2 048, as one filter and as the mean of several."""

from __future__ import annotations

import pandas as pd
from study import Study, main, tested

from hybridsep.evaluation.comparisons import BLIND, song_values

CHUNKS = 8
# N of one filter, and of the mean of several filters of FILTER_PARTICLES each. Time grows with N: the last takes longer
# than all others together.
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
AVERAGED_COUNTS = (32, 64, 128, 512)
ONE_FILTER, FILTER_PARTICLES = 0, 32  # as the profile's search.filter_particles


def particles(study: Study) -> None:
    """Measure scores, evidence, time, effective sample size and resamplings against the number of particles."""
    rows, figures, courses = [], [], []
    for size, counts in ((ONE_FILTER, COUNTS), (FILTER_PARTICLES, AVERAGED_COUNTS)):
        evaluation = study.evaluation(chunks=CHUNKS, search={"filter_particles": size})
        for count in counts:
            run = evaluation.blind_run("hybrid", particles=count)
            kind = {"filter_particles": size, "particles": count}
            rows.append(run.rows[run.rows.metric.isin(("sdr", "seconds", "log_evidence"))].assign(**kind))
            figures.append({**kind, **run.figures})
            courses.append(run.course.assign(**kind))
    table = pd.concat(rows, ignore_index=True)
    study.write("scores", table)
    study.write("search", pd.DataFrame(figures))
    study.write("course", pd.concat(courses, ignore_index=True))
    study.write("differences", averaging_gains(table))


def averaging_gains(table: pd.DataFrame) -> pd.DataFrame:
    """Return what several averaged filters gain over one of as many particles: blind, refined SDR, mean, dB."""
    one, averaged = table[table.filter_particles == ONE_FILTER], table[table.filter_particles != ONE_FILTER]
    several = averaged.particles > averaged.filter_particles
    shared = averaged.particles[several & averaged.particles.isin(one.particles)].unique()

    def scores(kind: pd.DataFrame, count: int) -> pd.Series:
        return song_values(kind[kind.particles == count], **BLIND, refine="wiener")

    gains = [(scores(averaged, count) - scores(one, count)).to_numpy() for count in shared]
    return tested([{"particles": count} for count in shared], gains)


if __name__ == "__main__":
    main(particles)
