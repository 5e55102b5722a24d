"""Fast paths, each with a reference implementation that is its oracle."""
