"""Published settings, benchmarks and studies; nothing in kd_jax imports from here."""
