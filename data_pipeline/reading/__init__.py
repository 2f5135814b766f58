"""From the files of one case to arrays: every byte is read, everything wrong is reported; and results back to files."""
