"""This code beside the originals it must not be slower than."""
