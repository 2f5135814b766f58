"""3-D operators compiled for this machine's processor: optional, built by `kd-jax native`."""
