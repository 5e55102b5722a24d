"""Serving: an engine that decodes many requests at once, each with its own adapter, and an HTTP server before it."""
