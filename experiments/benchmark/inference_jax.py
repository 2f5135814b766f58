"""Our side of segmenting a case: the predictor that `kd_jax.evaluate` and `kd_jax.predict` use."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from experiments.benchmark.inference_task import (
    OUTPUTS,
    TASKS,
    WEIGHTS_FILE,
    Task,
    draw_images,
    draw_layers,
    keep,
)
from experiments.benchmark.step_jax import device_memory
from experiments.benchmark.workload import Workload
from kd_jax.inference.sliding_window import Forward, make_predictor, windows_per_batch
from kd_jax.models.unet import UNet
from kd_jax.nnunet.weights import convert_weights
from kd_jax.ops.operators import conv3d, instance_norm_leaky_relu


def segment(*, task: str, folder: str, seed: int) -> Workload:
    """Images in NumPy to logits in NumPy; the first run takes one window, which compiles the network.

    Args:
      task: one of `TASKS`.
      folder: where the peers left their weights, and where logits go; without weights they are drawn.
      seed: of images and weights.
    """
    chosen, backend = TASKS[task], jax.default_backend()
    channels = range(len(chosen.modalities))
    forward, params = _unet(chosen, Path(folder), seed) if chosen.is_unet else _layers(chosen, seed)
    predict = make_predictor(
        forward,
        chosen.patch,
        inputs=channels,
        outputs=OUTPUTS,
        batch=windows_per_batch(chosen.patch, backend),
        mirror_axes=chosen.mirror,
    )
    shapes = iter([chosen.patch])

    def run() -> float:
        images = case if (shape := next(shapes, None)) is None else case[: shape[0], : shape[1], : shape[2]]
        return keep(Path(folder), "kd_jax", predict(params, images))

    case = draw_images(chosen.shape, len(channels), seed)
    return Workload(run, device_memory)


def _unet(task: Task, folder: Path, seed: int) -> tuple[Forward, PyTree]:
    network = task.network
    module = UNet(network, OUTPUTS, dtype=jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)

    def forward(params: PyTree, x: Float[Array, "n d h w c"]) -> Float[Array, "n d h w k"]:
        return module.apply({"params": params}, x).logits[0]

    if (weights := folder / WEIGHTS_FILE).exists():
        return forward, jax.device_put(convert_weights(np.load(weights), network))
    patch = jnp.zeros((1, *network.total_stride, len(task.modalities)))
    return forward, module.init(jax.random.key(seed), patch)["params"]


def _layers(task: Task, seed: int) -> tuple[Forward, PyTree]:
    *kernels, head = draw_layers(task, seed)

    def forward(params: PyTree, x: Float[Array, "n d h w c"]) -> Float[Array, "n d h w k"]:
        for kernel in params["kernels"]:
            features = kernel.shape[-1]
            x = instance_norm_leaky_relu(conv3d(x, kernel, (1, 1, 1)), jnp.ones(features), jnp.zeros(features))
        return conv3d(x, params["head"], (1, 1, 1))

    return forward, jax.device_put({"kernels": kernels, "head": head})
