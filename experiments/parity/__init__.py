"""Comparisons with the originals that this code follows: nnU-Net v2 and its libraries, imported, never copied."""
