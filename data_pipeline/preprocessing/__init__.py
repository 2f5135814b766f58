"""The files of one case to the arrays a network takes: cropped, normalised, resampled; and the way back."""
