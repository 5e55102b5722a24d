"""Commands: one file each, found by discovery."""
