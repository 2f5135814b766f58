"""From an opened run folder to a trained run."""
