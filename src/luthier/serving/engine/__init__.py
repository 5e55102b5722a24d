"""Engine: many requests decoded at once, each with its own adapter."""
