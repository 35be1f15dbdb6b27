"""Pictures of a stream's test images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fake_pascal import write_pascal
from medusa_cl.learn import pictures
from medusa_cl.models import MultiTaskModel
from medusa_cl.scenarios.dense import DenseScenario
from medusa_cl.scenarios.pascal import pascal_incremental


def test_pictures_of_different_sizes_share_one_frame(tmp_path: Path, tiny_model: Callable[..., MultiTaskModel]) -> None:
    write_pascal(tmp_path, test=3)
    scenario = pascal_incremental(root=str(tmp_path))
    sizes = [tuple(scenario.data["test"].image(i).shape[-2:]) for i in range(3)]
    images, drawn = pictures(scenario, tiny_model(*scenario.tasks.values()))
    frame = (max(h for h, _ in sizes), max(w for _, w in sizes), 3)
    assert len(images) == 3 and {image.shape for image in images} == {frame}
    for image, (height, width) in zip(images, sizes, strict=True):
        outside = np.ones(frame, bool)
        top, left = (frame[0] - height) // 2, (frame[1] - width) // 2
        outside[top : top + height, left : left + width] = False
        assert (image[outside] == 255).all() and (image[~outside] != 255).any()
    assert set(drawn) == set(scenario.tasks)
    assert all(one.shape == frame for pairs in drawn.values() for pair in pairs for one in pair)


def test_pictures_are_of_different_images(
    tiny_scenario: DenseScenario, tiny_model: Callable[..., MultiTaskModel]
) -> None:
    """Also where there are fewer than are wanted."""
    model = tiny_model(tiny_scenario.tasks["depth"])
    for count in (2, 4, 9):
        images, drawn = pictures(tiny_scenario, model, count)
        assert len(images) == min(count, 4) == len(drawn["depth"])
        assert len({image.tobytes() for image in images}) == len(images)
