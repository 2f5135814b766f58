"""From NIfTI folders to patches: layouts, reading, preprocessing, a cache, patches; a check of data sets; the phantom.

NumPy, SciPy, nibabel and Grain only. Grain's worker processes import this package, so it never imports JAX.
"""
