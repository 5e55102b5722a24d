"""Report: the page, tables and pictures of a study."""
