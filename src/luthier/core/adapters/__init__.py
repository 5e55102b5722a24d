"""Adapters: attached to a model, run, switched, merged and detached."""
