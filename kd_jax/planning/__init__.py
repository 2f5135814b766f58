"""From a data set's fingerprint to a plan by nnU-Net's rules."""
