"""The run folder: writes and reads its files."""
