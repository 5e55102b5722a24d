"""What every method stands on. Nothing here knows a method by name."""
