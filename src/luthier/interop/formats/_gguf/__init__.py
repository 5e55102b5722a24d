"""GGUF, the format of llama.cpp: architectures, tokenizers and the file."""
