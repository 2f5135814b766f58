"""How the data sets of the field lie on disk: one file per way of naming, all of them listed in `table`.

Names of folders and files decide, and names in dataset.json; voxel values never do, because 4 means three different
things across the years.
"""
