"""The files of one case to arrays: every byte read, everything that is wrong said, and the way back."""
