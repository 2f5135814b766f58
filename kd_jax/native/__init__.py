"""3-D operators compiled for this machine's processor: optional, built by `python -m kd_jax.native`."""
