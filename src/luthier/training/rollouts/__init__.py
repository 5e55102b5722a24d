"""Rollouts: answers that are sampled from the model under training, scored by rewards, and learned from."""
