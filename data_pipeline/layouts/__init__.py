"""How the data sets of the field lie on disk; one file per way of naming, and `table` names them all.

Names decide (of folders and files, and in dataset.json), never voxel values: 4 means three different things
across the years.
"""
