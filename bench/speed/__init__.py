"""What an adapter costs: a training step, a forward pass, decoding, memory; against the base and against peft."""
