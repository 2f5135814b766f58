"""Single-stage knowledge distillation for brain tumour segmentation from incomplete MRI (Choi et al. 2023)."""

__version__ = "0.2.0"
