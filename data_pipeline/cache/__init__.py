"""Prepared cases on disk: normalised, memory-mapped volumes that training reads patches from.

Preprocessing a case takes seconds and a patch takes milliseconds, so every case is preprocessed once and stored. Its
folder is named by a hash of its files' contents and of the settings: a changed file or setting makes a new folder, an
unchanged one is found again. Folders appear complete or not at all, so that a run can be killed at any moment.
"""
