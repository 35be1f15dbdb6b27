"""A trained model for MLflow, logged as this file (no pickle) beside model.json and model.safetensors.

model = mlflow.pyfunc.load_model("runs:/<run id>/model")
model.predict(images)        # {task: array}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray


class MedusaModel(PythonModel):
    """Image batch in, one array per task out.

    Input: B H W 3 uint8, or B 3 H W float in [0, 1], RGB.
    Output: {task: predictions in the task's own form}: classes B H W int64; depth B 1 H W metres; normals B 3 H W,
    x right, y down, z forward; edges and saliency B 1 H W probability.
    """

    def load_context(self, context: Any) -> None:
        """Read model.json and model.safetensors from the artifact folder `model`."""
        from medusa_cl.checkpoint import load_model

        self.model = load_model(Path(context.artifacts["model"]))
        self.model.eval()

    # mlflow reads the hint of model_input: with any other, or with none, it warns that it finds no signature.
    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Predict every task for a batch of images; there are no params."""
        import torch

        images = torch.from_numpy(image_batch(np.asarray(model_input)))
        with torch.inference_mode():
            predictions = self.model.predict(images)
        return {task: value.cpu().numpy() for task, value in predictions.items()}


def image_batch(images: NDArray[Any]) -> NDArray[np.float32]:
    """Bring B H W 3 uint8 or B 3 H W float images to B 3 H W float32 in [0, 1].

    Raises:
        ValueError: any other shape or dtype.
    """
    if images.ndim == 4 and images.dtype == np.uint8 and images.shape[-1] == 3:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)
    if images.ndim == 4 and np.issubdtype(images.dtype, np.floating) and images.shape[1] == 3:
        return np.ascontiguousarray(images, dtype=np.float32)
    raise ValueError(
        f"Expected images as B H W 3 uint8 or B 3 H W float in [0, 1], but got shape {images.shape}, {images.dtype}. "
        "Add a batch dimension, or convert the dtype."
    )


mlflow.models.set_model(MedusaModel())
