"""Interoperability: importing adapters of other libraries, and exporting to other software."""
