"""From a mixture to its stems: likelihoods, searches, decoding, refinement."""
