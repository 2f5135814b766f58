"""Prepare every case once: a cache of normalised, memory-mapped volumes that training reads patches from.

A case's folder is named by a hash of its files' contents and of the settings, so a changed file or
setting makes a new folder and an unchanged one is used again. Folders appear complete or not at all.
`python -m data_pipeline.prepare` does by itself what training does before it starts.
"""

from data_pipeline.prepare.cases import prepare_cases
from data_pipeline.prepare.entry import PreparedCase
from data_pipeline.prepare.place import cache_home, prepared_folder
from data_pipeline.reading.subject import Crop, Subject, load_subject, to_original_grid

__all__ = [
    "Crop",
    "PreparedCase",
    "Subject",
    "cache_home",
    "load_subject",
    "prepare_cases",
    "prepared_folder",
    "to_original_grid",
]
