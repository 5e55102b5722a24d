"""The studio: a page over the command line's own runs."""
