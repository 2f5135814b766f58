"""Post-processing of predicted label maps: largest components, tiny enhancing tumours, and how they are decided."""
