"""Single-stage knowledge distillation for brain tumour segmentation from incomplete MRI (Choi et al. 2023).

The names in `__all__` are stable; everything else may change between versions. They are imported when they are first
used, so that `import kd_jax` takes no time and starts no JAX.

Examples:
  >>> import kd_jax
  >>> student = kd_jax.load("runs/paper")
  >>> result = student.segment("patient")
  >>> result.labels.dtype
  dtype('uint8')
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.errors import InputError
    from data_pipeline.layouts.find import find_cases
    from kd_jax.config.load import load_config
    from kd_jax.config.schema import Config
    from kd_jax.inference.load import load
    from kd_jax.inference.result import SegmentationResult
    from kd_jax.inference.segmenter import Segmenter
    from kd_jax.metrics import dice, hd95, region_scores
    from kd_jax.models.unet import UNet
    from kd_jax.objective.segmentation import cross_entropy, soft_dice_loss
    from kd_jax.objective.supervised import segmentation_loss
    from kd_jax.objective.terms.barlow_twins import barlow_twins
    from kd_jax.training.fit import fit

__version__ = "0.3.0"

__all__ = [
    "Config",
    "InputError",
    "SegmentationResult",
    "Segmenter",
    "UNet",
    "barlow_twins",
    "cross_entropy",
    "dice",
    "find_cases",
    "fit",
    "hd95",
    "load",
    "load_config",
    "region_scores",
    "segmentation_loss",
    "soft_dice_loss",
]

_MODULES = {
    "Config": "kd_jax.config.schema",
    "InputError": "data_pipeline.errors",
    "SegmentationResult": "kd_jax.inference.result",
    "Segmenter": "kd_jax.inference.segmenter",
    "UNet": "kd_jax.models.unet",
    "barlow_twins": "kd_jax.objective.terms.barlow_twins",
    "cross_entropy": "kd_jax.objective.segmentation",
    "dice": "kd_jax.metrics",
    "find_cases": "data_pipeline.layouts.find",
    "fit": "kd_jax.training.fit",
    "hd95": "kd_jax.metrics",
    "load": "kd_jax.inference.load",
    "load_config": "kd_jax.config.load",
    "region_scores": "kd_jax.metrics",
    "segmentation_loss": "kd_jax.objective.supervised",
    "soft_dice_loss": "kd_jax.objective.segmentation",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
