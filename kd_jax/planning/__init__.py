"""Plans by nnU-Net's rules, made from the fingerprint of a data set."""
