"""Settings of a run: their schema, how they are read from files and the command line."""
