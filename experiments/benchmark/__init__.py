"""Comparisons of speed and memory with the original implementations."""
