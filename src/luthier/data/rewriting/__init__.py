"""Rows from rows: who judges and criticises, and the file that is written row by row."""
