"""This code beside the originals it follows: nnU-Net v2 and its libraries, imported, never copied."""
