"""Numerics: deltas, matrices, spectra, and the intrinsic dimension of clouds of points."""
