"""The level at which models hear mixtures, in training and in separation."""

MIXTURE_RMS = 0.1
