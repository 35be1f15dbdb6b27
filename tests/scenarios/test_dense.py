from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios import CLScenario

from fake_data import fake_dense_hdf5
from medusa_cl import tasks
from medusa_cl.batch import collate
from medusa_cl.data.hdf5 import HDF5Data, HDF5Writer
from medusa_cl.data.loader import Augmentation
from medusa_cl.data.split import DenseData
from medusa_cl.errors import ConfigError, DataError, TaskError
from medusa_cl.scenarios.dense import DenseExperience, DenseScenario, arrange, dense_scenario

KNOWN = [tasks.semseg(19), tasks.depth(), tasks.normals(), tasks.edges(), tasks.reshading()]


@pytest.fixture
def make(fake_splits: Mapping[str, DenseData]) -> Callable[..., DenseScenario]:
    def make(base: Sequence[str], stream: Sequence[str] = (), **options: Any) -> DenseScenario:
        return dense_scenario(KNOWN, options.pop("data", fake_splits), base, stream, **options)

    return make


def test_there_are_three_streams_of_as_many_experiences(tiny_scenario: DenseScenario) -> None:
    assert isinstance(tiny_scenario, CLScenario)
    for stream, size in (
        (tiny_scenario.train_stream, 8),
        (tiny_scenario.val_stream, 2),
        (tiny_scenario.test_stream, 4),
    ):
        assert [e.name for e in stream] == ["semseg+depth", "normals", "edges"]
        assert [len(e.dataset) for e in stream] == [size] * 3
        assert [e.current_experience for e in stream] == [0, 1, 2]
        assert all(isinstance(e, DenseExperience) for e in stream)


def test_an_experience_knows_its_tasks_and_its_one_label(tiny_scenario: DenseScenario) -> None:
    for stream in (tiny_scenario.train_stream, tiny_scenario.test_stream):
        assert [list(e.tasks) for e in stream] == [["semseg", "depth"], ["normals"], ["edges"]]
        assert [e.task_labels for e in stream] == [[0], [1], [2]]
    assert tiny_scenario.train_stream[2].tasks["edges"] is tiny_scenario.tasks["edges"]
    assert tiny_scenario.train_stream[0].origin_stream.name == "train"


def test_the_scenario_says_what_comes_when(tiny_scenario: DenseScenario, fake_splits: Mapping[str, DenseData]) -> None:
    assert tiny_scenario.name == "tiny"
    assert (tiny_scenario.base, tiny_scenario.stream) == (("semseg", "depth"), ("normals", "edges"))
    assert tiny_scenario.groups == [("semseg", "depth"), ("normals",), ("edges",)]
    assert list(tiny_scenario.tasks) == ["semseg", "depth", "normals", "edges"]
    assert tiny_scenario.content_hash == {split: source.content_hash for split, source in fake_splits.items()}


def test_only_training_images_vary(make: Callable[..., DenseScenario]) -> None:
    augmentation = Augmentation(flip=False, zooms=(1.0, 1.5))
    scenario = make(["depth"], ["normals"], augmentation=augmentation)
    assert {e.augmentation for e in scenario.train_stream} == {augmentation}
    assert {e.augmentation for s in (scenario.val_stream, scenario.test_stream) for e in s} == {None}
    assert make(["depth"]).augmentation == Augmentation()


def test_the_streams_order_is_that_of_the_call(make: Callable[..., DenseScenario]) -> None:
    assert make(["normals"], ["reshading", "semseg"]).groups == [("normals",), ("reshading",), ("semseg",)]
    assert list(make(["normals"], ["reshading", "semseg"]).tasks) == ["normals", "reshading", "semseg"]


def test_val_is_left_out_where_there_is_none(
    make: Callable[..., DenseScenario], fake_splits: Mapping[str, DenseData]
) -> None:
    scenario = make(["depth"], data={split: fake_splits[split] for split in ("train", "test")})
    assert set(scenario.streams) == {"train", "test"}


def test_samples_reach_avalanches_datasets_whole(tiny_scenario: DenseScenario) -> None:
    dataset = tiny_scenario.train_stream[0].dataset
    sample = dataset[3]
    assert (sample.index, sample.label, list(sample.targets)) == (3, 0, ["semseg", "depth"])
    x, y, labels = dataset.collate_fn([dataset[0], dataset[1]])
    assert x.shape == (2, 3, 32, 48)
    assert y.tasks == ("semseg", "depth")
    assert labels.tolist() == [0, 0]


def test_datasets_offer_what_balancing_buffers_read(tiny_scenario: DenseScenario) -> None:
    for label, experience in enumerate(tiny_scenario.train_stream):
        dataset = experience.dataset
        assert set(dataset.targets) == set(dataset.targets_task_labels) == {label}
        assert len(dataset.targets) == len(dataset)
        assert set(dataset.task_set) == {label}
        assert len(dataset.task_set[label]) == len(dataset)


def test_datasets_can_be_joined_and_cut_as_buffers_do(tiny_scenario: DenseScenario) -> None:
    first, second = (e.dataset for e in tiny_scenario.train_stream[:2])
    joined = first.subset([5, 2]).concat(second.subset([0]))
    assert list(joined.targets) == [0, 0, 1]
    x, y, labels = collate([joined[i] for i in range(3)])
    assert y.entries["depth"].rows.tolist() == [0, 1]
    assert y.entries["normals"].rows.tolist() == [2]
    assert labels.tolist() == [0, 0, 1]
    assert torch.equal(x[0], first[5].image)


@pytest.mark.parametrize(
    ("base", "stream", "message"),
    [
        (["semsg"], ["normals"], r'"semsg".*Did you mean "semseg"\?'),
        (["semseg"], ["normal"], r'"normal".*Did you mean "normals"\?'),
        (["semseg", "semseg"], [], r'"semseg" would be learnt twice'),
        (["semseg"], ["depth", "semseg"], r'"semseg" would be learnt twice'),
        ([], ["depth"], r"base is empty"),
    ],
)
def test_wrong_names_are_refused(
    make: Callable[..., DenseScenario], base: list[str], stream: list[str], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        make(base, stream)


def test_a_task_that_the_data_lacks_is_named_with_its_split(
    make: Callable[..., DenseScenario], fake_splits: Mapping[str, DenseData], tmp_path: Path
) -> None:
    path = fake_dense_hdf5(tmp_path / "few.h5", {"test": 1}, fields=("semseg", "depth"))
    data = {"train": fake_splits["train"], "test": HDF5Data(path, "test")}
    with pytest.raises(TaskError, match=r'"normals".*test data.*depth, semseg'):
        make(["semseg"], ["normals"], data=data)
    assert make(["semseg"], ["depth"], data=data).groups == [("semseg",), ("depth",)]


def without(path: Path, missing: Mapping[str, Sequence[int]], size: int = 4) -> HDF5Data:
    """A split some of whose images lack some targets."""
    whole = HDF5Data(fake_dense_hdf5(path.with_suffix(".whole.h5"), {"train": size}), "train")
    names = ("image", *whole.fields)
    arrays = {name: np.stack([whole.stored(i, name) for i in range(size)]) for name in names}
    present = {name: [i not in rows for i in range(size)] for name, rows in missing.items()}
    with HDF5Writer(path, classes={"semseg": [f"class_{i}" for i in range(19)]}) as writer:
        writer.append("train", arrays, present=present)
    return HDF5Data(path, "train")


def test_an_experience_holds_the_images_that_have_a_label_of_it(
    make: Callable[..., DenseScenario], tmp_path: Path
) -> None:
    source = without(tmp_path / "gaps.h5", {"normals": [0, 2], "depth": [1]})
    scenario = make(["semseg", "depth"], ["normals"], data={"train": source, "test": source})
    assert [len(e.dataset) for e in scenario.train_stream] == [4, 2]
    assert [scenario.train_stream[1].dataset[i].index for i in range(2)] == [1, 3]
    assert list(scenario.train_stream[0].dataset[1].targets) == ["semseg"]


def test_an_empty_experience_is_refused(make: Callable[..., DenseScenario], tmp_path: Path) -> None:
    source = without(tmp_path / "none.h5", {"normals": range(4)})
    with pytest.raises(DataError, match=r"normals.*experience 1 is empty") as caught:
        make(["semseg", "depth"], ["normals"], data={"train": source, "test": source})
    assert "none.h5" in str(caught.value)
    assert "object at 0x" not in str(caught.value)


NAMES = ["depth", "normals", "edges", "reshading", "keypoints2d"]


def test_listed_names_stay_as_they_are() -> None:
    assert arrange(["semseg", "depth"], ["normals", "edges"], seed=3) == (["semseg", "depth"], ["normals", "edges"])
    assert arrange(("semseg",), ()) == (["semseg"], [])


def test_a_random_order_depends_on_the_names_and_the_seed_alone() -> None:
    orders = [tuple(arrange(["semseg"], NAMES, order="random", seed=seed)[1]) for seed in range(20)]
    assert len(set(orders)) > 10
    for seed, order in enumerate(orders):
        assert arrange(["semseg"], NAMES[::-1], order="random", seed=seed) == (["semseg"], list(order))
        assert arrange(["other", "semseg"], NAMES, order="random", seed=seed)[1] == list(order)
    assert all(sorted(order) == sorted(NAMES) for order in orders)
    assert {order[0] for order in orders} == set(NAMES)


def test_what_is_held_out_makes_the_stream() -> None:
    base, stream = ["semseg", "depth"], ["normals", "edges"]
    assert arrange(base, stream, held_out="normals") == (["semseg", "depth", "edges"], ["normals"])
    assert arrange(base, stream, held_out="semseg") == (["depth", "normals", "edges"], ["semseg"])
    assert arrange(base, stream, held_out=["edges", "depth"]) == (["semseg", "normals"], ["edges", "depth"])
    assert arrange(base, stream, held_out=[]) == (base, stream)
    assert arrange([*base, *stream], [], held_out="edges") == (["semseg", "depth", "normals"], ["edges"])


@pytest.mark.parametrize("order", ["listed", "random"])
@pytest.mark.parametrize("held_out", [None, "depth", ["edges", "depth", "normals"]])
def test_what_is_arranged_stays_so(order: str, held_out: str | list[str] | None) -> None:
    once = arrange(["semseg", "depth"], ["normals", "edges"], order=order, held_out=held_out, seed=5)
    assert arrange(*once, order=order, held_out=held_out, seed=5) == once


def test_wrong_arrangements_are_answered() -> None:
    with pytest.raises(TaskError, match=r'Unknown task to hold out "normal".*Did you mean "normals"'):
        arrange(["semseg"], ["normals"], held_out="normal")
    with pytest.raises(TaskError, match='"egdes"'):
        arrange(["semseg"], ["edges", "normals"], held_out=["normals", "egdes"])
    with pytest.raises(ConfigError, match=r'scenario\.order "randm".*Did you mean "random"'):
        arrange(["semseg"], ["normals"], order="randm")


def test_holding_out_all_leaves_no_base(make: Callable[..., DenseScenario]) -> None:
    with pytest.raises(TaskError, match="base is empty"):
        make(*arrange(["semseg"], ["depth"], held_out=["semseg", "depth"]))


def test_a_single_name_needs_no_list() -> None:
    assert arrange("depth", "normals") == (["depth"], ["normals"])
