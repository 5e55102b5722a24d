"""Kernels: fast implementations, each with a reference implementation as its oracle."""
