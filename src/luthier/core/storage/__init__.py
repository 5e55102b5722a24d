"""Storage: adapters on disk, saved and loaded."""
