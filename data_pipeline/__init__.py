"""From NIfTI folders to patches: formats, checks, preparation, augmentation, Grain loading, and the phantom.

NumPy, SciPy, nibabel and Grain only. Grain's workers re-import this package, so it never imports JAX.
"""
