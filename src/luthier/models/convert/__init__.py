"""One module a weights format, found by its name: `convert(weights, target)` makes a folder."""
