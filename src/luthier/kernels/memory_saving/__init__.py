"""Pieces: modules of a base model whose forward pass keeps less for the backward pass. One file, one piece."""
