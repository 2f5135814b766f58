"""From NIfTI folders to patches: layouts, reading, preprocessing, a cache, patches; a check of data sets; the phantom.

NumPy, SciPy, nibabel and Grain only. Grain's workers import this package anew, so it never imports JAX.
"""
