"""Trained networks applied to whole cases."""
