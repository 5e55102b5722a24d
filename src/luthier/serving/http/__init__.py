"""HTTP: the server before the engine, and its page."""
