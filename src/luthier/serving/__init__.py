"""Serving: an engine that decodes many requests at once, each with its own adapter, behind an HTTP server."""
