"""The embedded data set: gliomas grown in the ICBM152 brain, written as BraTS 2021 folders.

    kd-jax phantom OUT --cases 40 --seed 0

A phantom trains and tests the software without a download. Scores on phantoms tell nothing about patients.
"""
