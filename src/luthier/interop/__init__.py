"""Interop: adapters that come from other libraries, and adapters that leave for other software."""
