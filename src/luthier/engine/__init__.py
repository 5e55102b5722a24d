"""The engine, which decodes many requests at once, each with its own adapter."""
