"""Architectures, the protocol they follow, and the meaning of their outputs."""
