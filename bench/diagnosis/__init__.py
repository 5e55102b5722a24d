"""What a fine-tune did: examinations, monitoring, shots and selection on real weights, each beside its null."""
