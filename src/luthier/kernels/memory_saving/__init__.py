"""Memory-saving forward passes of a base's modules, which keep less for the backward pass; one per file."""
