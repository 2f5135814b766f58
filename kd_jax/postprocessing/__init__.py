"""What becomes of a predicted label map: largest components, tiny enhancing tumours, and how that is decided."""
