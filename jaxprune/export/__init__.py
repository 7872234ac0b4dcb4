"""Sparse networks in a file or another program's format: bits, N:M, sparse arrays, safetensors."""
