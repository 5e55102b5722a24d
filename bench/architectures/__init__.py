"""Every architecture of the installed transformers, in small: what the four kinds of form do on each of them.

    python -m bench architectures [FAMILY …] [--only NAME,NAME] [--seconds 60] [--out FILE] [--report]

The classes are those of transformers' auto mappings. Each is built from its own configuration, made small by the names
of its fields (`small`), and held to the laws of `laws`; the table is docs/architectures.md (`--report`).
"""
