"""`python -m data_pipeline.check`: everything that is wrong with a data set, before anything is trained on it."""
