"""`kd-jax check`: everything that is wrong with a data set, before anything is trained on it."""
