"""Prepared cases on disk: normalised, memory-mapped volumes that training reads patches from.

Preprocessing a case takes seconds and a patch takes milliseconds, so every case is preprocessed once and stored. Its
folder is named by a hash of its files' contents and of the settings: a changed file or setting makes a new folder, an
unchanged one is found again. Folders appear complete or not at all, so that a run can be killed at any moment.
"""

from data_pipeline.cache.entry import PreparedCase
from data_pipeline.cache.fill import prepare_cases
from data_pipeline.cache.place import cache_home, prepared_folder

__all__ = ["PreparedCase", "cache_home", "prepare_cases", "prepared_folder"]
