"""From prepared cases to augmented training patches: where to cut, how to turn, what to change, in which order."""
