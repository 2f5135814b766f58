"""The objective of a training step: segmentation losses, distillation terms, and their sum."""
