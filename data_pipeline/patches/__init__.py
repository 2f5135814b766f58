"""Prepared cases to augmented training patches: where to cut, how to turn, how to change, and in what order."""
