"""Predicting for anybody's pictures: what comes out is what the model says, whatever goes in."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import matplotlib
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from medusa_cl import colours, kept, predict, tasks
from medusa_cl.checkpoint import load_model, save_model
from medusa_cl.deploy import pictures, predict_files, predict_panel
from medusa_cl.deploy.predictor import OutOfMemoryError, Predictor, resolve_device, value_unit
from medusa_cl.errors import ConfigError, DataError, MedusaError, MissingDataError, TaskError
from medusa_cl.models import AdaptedHead, Backbone, MedusaHead, MultiTaskModel
from medusa_cl.models.coupled import CoupledModel, MTINet
from medusa_cl.predict import USAGE, predict_images

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/predict.md").read_text(encoding="utf-8")
CLASSES = ["wall", "floor", "lamp"]
NAMES = ["semseg", "depth", "normals", "edges", "range"]
Picture = NDArray[np.uint8]


def photo(height: int, width: int, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scrambled(model: MultiTaskModel) -> MultiTaskModel:
    """Give weights that answer differently from place to place."""
    draw = torch.Generator().manual_seed(5)
    for value in model.heads.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=draw) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., MultiTaskModel]) -> MultiTaskModel:
    known = [tasks.semseg(CLASSES), tasks.depth(), tasks.normals(), tasks.edges(), tasks.depth(name="range")]
    return scrambled(tiny_model(*known))


@pytest.fixture(scope="module")
def run(model: MultiTaskModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory, of a net trained at 64x96."""
    folder = tmp_path_factory.mktemp("run")
    save_model(model, folder / "model")
    (folder / "config.yaml").write_text("scenario:\n  image_size: [64, 96]\n")
    (folder / "overrides.yaml").touch()
    return folder


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor(run)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "kitchen").mkdir(parents=True)
    Image.fromarray(photo(40, 56)).save(folder / "a.png")
    Image.fromarray(photo(50, 30, 1)).save(folder / "kitchen/b.bmp")
    return folder


def said_by(model: MultiTaskModel, image: Picture) -> dict[str, NDArray[Any]]:
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None] / 255
    return {name: value[0].numpy() for name, value in model.predict(batch).items()}


def last_axis(value: NDArray[Any]) -> NDArray[Any]:
    return value if value.ndim == 2 else value[0] if len(value) == 1 else value.transpose(1, 2, 0)


# ---------------------------------------------------------------- what is answered


@pytest.mark.parametrize("size", [(40, 56), (64, 96), (1, 1), (3, 7), (33, 1)])
def test_at_its_own_size_a_picture_gets_the_bits_of_the_model(
    run: Path, model: MultiTaskModel, size: tuple[int, int]
) -> None:
    image = photo(*size)
    answers, expected = Predictor(run, size="own")(image), said_by(model, image)
    assert list(answers) == NAMES
    for name in NAMES:
        assert np.array_equal(answers[name], last_axis(expected[name])), name
    assert {name: str(a.dtype) for name, a in answers.items()} == dict.fromkeys(NAMES, "float32") | {"semseg": "uint8"}
    assert answers["normals"].shape == (*size, 3) and answers["depth"].shape == size
    assert np.allclose(np.linalg.norm(answers["normals"], axis=-1), 1, atol=1e-5)


def test_by_default_the_net_sees_what_it_was_trained_on(predictor: Predictor, model: MultiTaskModel) -> None:
    """A picture of 128x192 is seen at 64x96; its logits, not its labels, are brought back."""
    image = photo(128, 192)
    assert predictor.seen_size(128, 192) == (64, 96)
    assert predictor.seen_size(192, 128) == (96, 64)
    assert predictor.seen_size(10, 24) == (40, 96)
    small = np.asarray(Image.fromarray(image).resize((96, 64), Image.Resampling.BILINEAR))
    batch = torch.from_numpy(small.transpose(2, 0, 1).copy()).float()[None] / 255
    with torch.no_grad():
        logits = {name: answer[0] for name, answer in model(batch).items()}
    wide = {
        name: torch.nn.functional.interpolate(x, (128, 192), mode="bilinear", align_corners=False)
        for name, x in logits.items()
    }
    answers = predictor(image)
    assert np.allclose(answers["depth"], wide["depth"][0, 0], atol=1e-5)
    assert np.allclose(answers["edges"], wide["edges"][0, 0].sigmoid(), atol=1e-5)
    assert (answers["semseg"] == wide["semseg"][0].argmax(0).numpy()).mean() > 0.999
    assert np.allclose(np.linalg.norm(answers["normals"], axis=-1), 1, atol=1e-5)


def test_padding_is_not_answered_for(run: Path) -> None:
    """Seen at 48x96, padded to 64x96: what is brought to 96x192 is the upper three quarters of the logits."""
    predictor = Predictor(run, tasks=["depth"])
    image = photo(96, 192)
    small = np.asarray(Image.fromarray(image).resize((96, 48), Image.Resampling.BILINEAR))
    batch = torch.from_numpy(small.transpose(2, 0, 1).copy()).float()[None] / 255
    with torch.no_grad():
        logits = predictor.model(batch)["depth"][0]
    whole = torch.nn.functional.interpolate(logits, (128, 192), mode="bilinear", align_corners=False)
    assert np.allclose(predictor(image)["depth"], whole[0, 0, :96], atol=1e-5)


def test_strips_change_no_answer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(70, 110)
    whole = Predictor(run)(image)
    monkeypatch.setattr("medusa_cl.deploy.predictor._AT_ONCE", 1000)
    strips = Predictor(run)(image)
    assert all(np.allclose(whole[name], strips[name], atol=1e-6) for name in NAMES)
    assert all(whole[name].shape == strips[name].shape for name in NAMES)


def test_sizes_as_asked(run: Path, tmp_path: Path) -> None:
    assert Predictor(run, size="own").seen_size(300, 200) == (300, 200)
    assert Predictor(run, size="own", max_size=150).seen_size(300, 200) == (150, 100)
    assert Predictor(run, size=50).seen_size(300, 1) == (50, 1)
    bare = Predictor(run / "model")
    assert bare.training_size == (64, 96)  # the run that the directory is in says so
    shutil.copytree(run / "model", tmp_path / "alone")
    assert Predictor(tmp_path / "alone").seen_size(300, 200) == (300, 200)
    for size, message in (("tiny", "train.*own"), (0, "got 0"), (4000, "max_size=2048"), (True, "got True")):
        with pytest.raises(ConfigError, match=message):
            Predictor(run, size=size)
    with pytest.raises(ConfigError, match="max_size"):
        Predictor(run, max_size=0)


@pytest.mark.parametrize("config", ["scenario: {image_size: null}", "[1]", "{", "scenario: {image_size: [1]}", "x: 3"])
def test_a_training_size_that_is_not_said_is_none(run: Path, tmp_path: Path, config: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/config.yaml").write_text(config)
    assert Predictor(tmp_path / "run").training_size is None


def test_the_training_size_of_data_on_disk_is_in_the_model(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/config.yaml").write_text("scenario: {image_size: null}")
    model = load_model(run / "model")
    model.image_size = (425, 560)
    save_model(model, tmp_path / "run/model")
    assert Predictor(tmp_path / "run").training_size == (425, 560)


def test_a_batch_answers_as_single_pictures_do(predictor: Predictor) -> None:
    images = [photo(40, 56), photo(64, 30, 1), photo(80, 112, 2), photo(40, 56, 3)]
    together, alone = predictor.several(images), [predictor(image) for image in images]
    for ours, theirs in zip(together, alone, strict=True):
        for name in NAMES:
            assert ours[name].shape == theirs[name].shape
            assert np.mean(np.abs(ours[name].astype(float) - theirs[name]) < 1e-4) > 0.999, name


def test_only_the_heads_asked_for_run_and_in_that_order(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(run, tasks=["normals", "depth", "normals"])
    ran = []
    for name, head in predictor.model.heads.items():
        head.register_forward_hook(lambda *args, name=name: ran.append(name))
    passes = []
    predictor.model.backbone.register_forward_hook(lambda *args: passes.append(1))
    assert list(predictor(photo(9, 9))) == ["normals", "depth"]
    assert ran == ["normals", "depth"] and len(passes) == 1
    with pytest.raises(TaskError, match=r'"dept".*Did you mean "depth"\?'):
        Predictor(run, tasks=["dept"])


@pytest.mark.parametrize("image", [photo(4, 4).astype(float), photo(4, 4)[..., 0], photo(4, 4)[:0], [[1]]])
def test_what_is_no_picture_is_refused(predictor: Predictor, image: Any) -> None:
    with pytest.raises(DataError, match="H W 3 uint8"):
        predictor(image)


def test_models_of_every_kind_predict(tmp_path: Path, tiny_model: Callable[..., MultiTaskModel]) -> None:
    backbone = Backbone.create("test_efficientnet", pretrained=False)
    coupled = CoupledModel(backbone, partial(MTINet, width=8))
    coupled.add_heads([tasks.semseg(CLASSES), tasks.depth()], seed=0)
    adapted = partial(AdaptedHead, head=partial(MedusaHead, width=8, mix_width=8))
    beside = tiny_model()
    beside.freeze_backbone()
    beside.add_head(tasks.semseg(CLASSES), 0, adapted)
    beside.add_head(tasks.depth(), 0)
    narrow = tiny_model(tasks.semseg(CLASSES), "depth", precision="bf16")
    image = photo(40, 56)
    for name, model in {"coupled": coupled, "adapters": beside, "bf16": narrow}.items():
        save_model(scrambled(model), tmp_path / name)
        answers = Predictor(tmp_path / name, tasks=["depth", "semseg"])(image)
        assert list(answers) == ["depth", "semseg"] and answers["depth"].dtype == np.float32
        assert all(np.array_equal(a, last_axis(said_by(model, image)[task])) for task, a in answers.items()), name


def test_units_are_those_of_values_not_of_scores() -> None:
    made = [tasks.BUILT_IN[name]() for name in ("semseg", "edges", "depth", "reshading", "curvature", "regression")]
    assert [value_unit(task) for task in made] == ["class", "probability", "m", "0..1", "1/m", ""]
    assert value_unit(tasks.regression(unit="degC")) == "degC"
    assert "y down" in value_unit(tasks.normals())


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device=cuda, but torch finds no GPU\. Use device=auto or cpu"):
        resolve_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [str(resolve_device(name)) for name in ("auto", "cuda:1", "cpu")] == ["cuda", "cuda:1", "cpu"]
    with pytest.raises(ConfigError, match="device=cuda:2, but torch finds 2 GPUs"):
        resolve_device("cuda:2")
    for wrong in ("gpu", "cuda:x", "cpu:0"):
        with pytest.raises(ConfigError, match=f'"{wrong}"'):
            resolve_device(wrong)


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu_does(run: Path) -> None:
    image = photo(128, 192)
    ours, theirs = Predictor(run, device="cuda")(image), Predictor(run, device="cpu")(image)
    assert all(np.mean(np.abs(ours[name].astype(float) - theirs[name]) < 1e-2) > 0.99 for name in NAMES)


# ---------------------------------------------------------------- what is read


def saved(folder: Path, name: str, picture: Image.Image, **options: Any) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def test_formats_without_loss_give_their_pixels(tmp_path: Path) -> None:
    image = photo(5, 7)
    for name in ("a.png", "a.bmp", "a.tif", "a.ppm", "a.PNG"):
        assert np.array_equal(pictures.read(saved(tmp_path, name, Image.fromarray(image))), image), name
    lossless = saved(tmp_path, "a.webp", Image.fromarray(image), lossless=True)
    assert np.array_equal(pictures.read(lossless), image)


def test_lossy_formats_are_near_what_another_reader_sees(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 40 * 56 * 3).reshape(40, 56, 3).astype(np.uint8)
    jpeg = saved(tmp_path, "a.jpg", Image.fromarray(smooth), quality=95)
    assert np.array_equal(pictures.read(jpeg), imageio.imread(jpeg))
    cmyk = saved(tmp_path, "c.jpg", Image.fromarray(smooth).convert("CMYK"), quality=95)
    assert np.abs(pictures.read(cmyk).astype(int) - smooth).mean() < 12


def test_other_kinds_of_pixels_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
    three = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(pictures.read(saved(tmp_path, "grey.png", Image.fromarray(grey))), three)
    indexed = Image.fromarray(grey % 3)
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red_green_blue = np.eye(3, dtype=np.uint8)[grey % 3] * 255
    assert np.array_equal(pictures.read(saved(tmp_path, "palette.png", indexed)), red_green_blue)
    two_tone = saved(tmp_path, "bit.png", Image.fromarray(grey > 99))
    assert np.array_equal(pictures.read(two_tone)[..., 0], (grey > 99) * 255)
    frames = [Image.fromarray(photo(5, 7, k) // 64 * 64).quantize(64) for k in range(3)]
    moving = saved(tmp_path, "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    assert np.array_equal(pictures.read(moving), np.asarray(frames[0].convert("RGB")))


def test_of_sixteen_bits_the_upper_eight_are_taken(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (5, 7), dtype=np.uint16)
    imageio.imwrite(tmp_path / "grey.png", deep)
    tifffile.imwrite(tmp_path / "grey.tif", deep)
    tifffile.imwrite(tmp_path / "colour.tif", np.stack([deep, deep.T.reshape(5, 7), deep], axis=-1))
    for name in ("grey.png", "grey.tif", "colour.tif"):
        assert np.array_equal(pictures.read(tmp_path / name)[..., 0], deep >> 8), name
    tifffile.imwrite(tmp_path / "shares.tif", (deep / 65535).astype(np.float32))
    assert np.abs(pictures.read(tmp_path / "shares.tif")[..., 0] - deep / 257).max() <= 1
    tifffile.imwrite(tmp_path / "metres.tif", np.float32([[0.5, 7]]))
    with pytest.raises(DataError, match=r"metres\.tif.*floats in 0\.\.1.*0\.5 \.\. 7"):
        pictures.read(tmp_path / "metres.tif")


def test_bits_are_those_that_a_picture_has(tmp_path: Path) -> None:
    """12 bits in files of 16, and 8 in files of 16 or 32, by hand: 4095 and 255 are white, 2048 and 128 half."""
    twelve, eight = np.array([[0, 2048, 4095]], np.uint16), np.array([[0, 128, 255]], np.uint16)
    imageio.imwrite(tmp_path / "twelve.png", twelve)
    imageio.imwrite(tmp_path / "eight.png", eight)
    tifffile.imwrite(tmp_path / "eight.tif", eight.astype(np.int32))
    tifffile.imwrite(tmp_path / "black.tif", eight * 0)
    Image.fromarray(twelve).save(tmp_path / "said.tif", tiffinfo={281: 65535})
    found = {path.name: pictures.read_bits(path) for path in tmp_path.iterdir()}
    assert {name: (image[0, :, 1].tolist(), bits) for name, (image, bits) in found.items()} == {
        "twelve.png": ([0, 128, 255], 12),
        "eight.png": ([0, 128, 255], 8),
        "eight.tif": ([0, 128, 255], 8),
        "black.tif": ([0, 0, 0], None),
        "said.tif": ([0, 8, 15], None),
    }
    Image.fromarray(twelve).save(tmp_path / "said.tif", tiffinfo={281: 16383})
    assert pictures.read(tmp_path / "said.tif")[0, :, 0].tolist() == [0, 32, 63]
    tifffile.imwrite(tmp_path / "colour.tif", np.repeat(twelve[..., None], 3, axis=2))
    with pytest.raises(DataError, match=r"colour\.tif: colours of 16 bits.*use 12"):
        pictures.read(tmp_path / "colour.tif")


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    half = np.zeros((1, 3, 4), np.uint8)
    half[0, :, 3] = (0, 128, 255)
    assert pictures.read(saved(tmp_path, "a.png", Image.fromarray(half)))[0, :, 0].tolist() == [255, 127, 0]
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8))
    indexed.putpalette([9, 9, 9, 5, 6, 7])
    clear = saved(tmp_path, "b.png", indexed, transparency=0)
    assert pictures.read(clear).tolist() == [[[255, 255, 255], [5, 6, 7]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(tmp_path: Path, orientation: int) -> None:
    """Against the definition: where the stored row 0 and column 0 are seen (EXIF 2.3, tag 0x0112)."""
    upright = photo(4, 6)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1], 7: upright.swapaxes(0, 1)[::-1, ::-1], 8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, "a.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(pictures.read(path), upright)


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    whole = saved(tmp_path, "whole.jpg", Image.fromarray(photo(40, 56))).read_bytes()
    contents = {"cut.jpg": whole[: len(whole) // 2], "text.png": b"hello", "empty.jpg": b"", "phone.heic": b"x" * 99}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    said = {"cut.jpg": "truncated", "text.png": "no format", "empty.jpg": "empty", "phone.heic": "pip install .*heif"}
    for name, message in said.items():
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            pictures.read(tmp_path / name)
    with pytest.raises(DataError, match=r"gone\.png: it does not exist"):
        pictures.read(tmp_path / "gone.png")


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"large\.png.*Make it smaller"):
        pictures.read(saved(tmp_path, "large.png", Image.fromarray(photo(20, 20))))
    middling = saved(tmp_path, "middling.png", Image.fromarray(photo(15, 10)))  # of which Pillow only warns
    assert pictures.read(middling).shape == (15, 10, 3)


def test_all_pictures_in_a_folder_are_found_or_named(photos: Path, tmp_path: Path) -> None:
    """Links to folders are followed once, whatever circle they make; what is no file would wait for ever."""
    for name in ("b.JFIF", "c.tga", "d.dng", "e.dng", "f.txt", "nothing", ".h.png"):
        (photos / name).touch()
    for name in ("elsewhere", "phone.png"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "z.heic").touch()
    os.mkfifo(photos / "g.jpg")
    links = {"i.jpg": "gone.jpg", "again": "kitchen", "a": "../elsewhere", "circle": ".", "around": "../..", "l": "a"}
    for name, target in links.items():
        (photos / name).symlink_to(target)
    found = pictures.find(photos, lambda folder: False)
    assert found.names == ("a.png", "a/z.heic", "b.JFIF", "c.tga", "kitchen/b.bmp")
    assert found.passed_over == {".dng": 2, ".txt": 1, "": 1}
    assert pictures.counted(found.passed_over) == ".dng 2, no suffix 1, .txt 1"
    assert {name: why.split(",")[0] for name, why in found.faults.items()} == {
        "g.jpg": "a pipe",
        "i.jpg": "a link to nothing",
        "around": "a link to a folder around this one",
    }
    with pytest.raises(DataError, match=r"g\.jpg: it is a pipe"):
        pictures.read(photos / "g.jpg")
    with pytest.raises(ConfigError, match=r"g\.jpg is a pipe"):
        pictures.find(photos / "g.jpg", lambda folder: False)


def test_names_of_outputs_are_nobody_elses() -> None:
    endings = (".png", ".npz", "_depth.png")
    assert pictures.output_names(["b/a.jpg", "c.d.png"], endings) == {"b/a.jpg": "b/a", "c.d.png": "c.d"}
    same = ["a.jpg", "a.png", "B.jpg", "b.jpg", "x.jpg", "x_depth.png", "y.png.jpg", "y.jpg", "y.png"]
    found = pictures.output_names(same, endings)
    outputs = [f"{stem}{ending}".casefold() for stem in found.values() for ending in endings]
    assert len(set(outputs)) == len(outputs)
    assert list(found) == same
    assert (found["a.jpg"], found["x_depth.png"]) == ("a.jpg", "x_depth.png")


# ---------------------------------------------------------------- what is written


def test_files_hold_what_the_model_says(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    done = predict_images(predictor, photos, tmp_path / "out")
    assert done.predicted == ("a.png", "kitchen/b.bmp") and not done.failed and not done.before
    for name, size in (("a", (40, 56)), ("kitchen/b", (50, 30))):
        stem = tmp_path / "out" / name
        source = next(photos.glob(f"{name}.*"))
        expected = predictor(pictures.read(source))
        with np.load(f"{stem}.npz") as arrays:
            assert list(arrays) == NAMES
            assert all(np.array_equal(arrays[task], expected[task]) for task in NAMES)
        for task in ("depth", "range"):
            millimetres = imageio.imread(f"{stem}_{task}.png")
            assert millimetres.dtype == np.uint16 and millimetres.shape == size
            wanted = np.clip(expected[task].astype(float) * 1000, 0, 65535)
            assert np.abs(millimetres - wanted).max() <= 0.5
        with Image.open(f"{stem}_semseg.png") as labels:
            assert labels.mode == "P"
            assert np.array_equal(np.asarray(labels), expected["semseg"])
            assert np.array_equal(np.asarray(labels.convert("RGB")), tasks.semseg(CLASSES).draw(expected["semseg"]))
        assert imageio.imread(f"{stem}.png").shape[2] == 3


def test_the_page_says_what_was_done(predictor: Predictor, photos: Path, tmp_path: Path, run: Path) -> None:
    predict_images(predictor, photos, tmp_path / "out")
    page = json.loads((tmp_path / "out/predictions.json").read_text())
    assert page["asked"]["model"]["weights"] == kept.file_hash(run / "model/model.safetensors")
    assert page["training_size"] == [64, 96] and page["asked"]["size"] == 96
    assert page["tasks"]["semseg"]["classes"] == CLASSES
    assert page["tasks"]["semseg"]["colours"] == tasks.palette()[:3].tolist()
    assert page["tasks"]["depth"] == {"kind": "depth", "array": "H W float32", "unit": "m"}
    assert page["tasks"]["normals"]["array"] == "H W 3 float32" and "x right" in page["tasks"]["normals"]["unit"]
    assert page["images"]["a.png"]["size"] == [40, 56] and page["images"]["a.png"]["seen"] == [69, 96]
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    listed = {name for image in page["images"].values() for name in image["files"]}
    assert written == listed | {"predictions.json", ".lock"}


def test_depth_beyond_what_sixteen_bits_hold_is_counted(tmp_path: Path) -> None:
    metres = np.array([[0.0004, 0.0016, -1.0, 65.535, 65.536, 70.0, np.nan, np.inf]], np.float32)
    assert predict_files.write_depth(tmp_path / "d.png", metres) == 3
    assert imageio.imread(tmp_path / "d.png").tolist() == [[0, 2, 0, 65535, 65535, 65535, 0, 65535]]


def test_more_classes_than_a_byte_counts(tmp_path: Path, tiny_model: Callable[..., MultiTaskModel]) -> None:
    save_model(scrambled(tiny_model(tasks.semseg(300))), tmp_path / "model")
    predictor = Predictor(tmp_path / "model")
    image = photo(20, 30)
    labels = predictor(image)["semseg"]
    assert labels.dtype == np.uint16
    predict_files.write_labels(tmp_path / "l.png", labels)
    assert np.array_equal(imageio.imread(tmp_path / "l.png"), labels)
    assert predict_panel.panel(image, {"semseg": labels}, predictor.tasks, ("a", "b")).shape[2] == 3


def test_metres_are_what_png_of_depth_are_of() -> None:
    inverse = dataclasses.replace(tasks.depth(name="inverse"), unit="1/m")
    assert predict_files.endings(("png",), {"range": tasks.depth(name="range"), "inverse": inverse}) == ("_range.png",)


def test_the_same_call_again_does_what_is_new(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_images(predictor, photos, out)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    Image.fromarray(photo(8, 9)).save(photos / "new.png")
    Image.fromarray(photo(40, 57, 4)).save(photos / "a.png")
    again = predict_images(predictor, photos, out)
    assert (again.predicted, again.before) == (("a.png", "new.png"), 1)
    assert (out / "kitchen/b.npz").stat().st_mtime_ns == first[out / "kitchen/b.npz"]
    assert np.load(out / "a.npz")["depth"].shape == (40, 57)
    (out / "kitchen/b_depth.png").unlink()
    assert predict_images(predictor, photos, out).predicted == ("kitchen/b.bmp",)
    assert predict_images(predictor, photos, out, overwrite=True).before == 0


def test_another_model_does_not_mix(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_images(Predictor(run), photos, out)
    other = Predictor(run, tasks=["depth"])
    with pytest.raises(ConfigError, match=r"made otherwise \(tasks: .*Choose another out=.*overwrite=true"):
        predict_images(other, photos, out)
    predict_images(other, photos, out, overwrite=True, write=["arrays"])
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == [".lock", "a.npz", "b.npz", "predictions.json"]
    assert list(np.load(out / "a.npz")) == ["depth"]
    with pytest.raises(ConfigError, match="images: "):
        predict_images(other, photos / "kitchen", out, write=["arrays"])


def test_a_stop_while_replacing_leaves_no_mix(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    predict_images(Predictor(run), photos, out, write=["arrays", "png"])
    other = Predictor(run, tasks=["depth"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(other, "several", lambda images: (_ for _ in ()).throw(KeyboardInterrupt))
        predict_images(other, photos, out, write=["png"], overwrite=True)
    assert (out / "a_semseg.png").is_file() and (out / "a.npz").is_file()
    predict_images(other, photos, out, write=["png"])
    left = {path.relative_to(out).as_posix() for path in out.rglob("*.*") if path.suffix != ".json"}
    assert left == {".lock", "a_depth.png", "kitchen/b_depth.png"}
    assert "to_remove" not in json.loads((out / "predictions.json").read_text())


def test_pictures_that_are_gone_keep_their_answers(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    """A robot empties its inbox; and a picture of the same name but for its suffix replaces nothing."""
    predict_images(predictor, photos, tmp_path / "out", write=["arrays"])
    before = (tmp_path / "out/a.npz").read_bytes()
    (photos / "a.png").unlink()
    Image.fromarray(photo(8, 9)).save(photos / "a.jpg")
    predict_images(predictor, photos / "a.jpg", tmp_path / "out", write=["arrays"])
    page = json.loads((tmp_path / "out/predictions.json").read_text())
    assert set(page["images"]) == {"a.png", "a.jpg", "kitchen/b.bmp"}
    (files,) = (page["images"][name]["files"] for name in ["a.jpg"])
    assert np.load(tmp_path / "out" / files[0])["depth"].shape == (8, 9)
    kept_file = page["images"]["a.png"]["files"][0]
    assert kept_file != files[0] and (tmp_path / "out" / kept_file).read_bytes() == before


def test_outputs_are_never_predicted(predictor: Predictor, photos: Path) -> None:
    for out in (photos / "out", photos / "out", photos / "deep/er"):
        done = predict_images(predictor, photos, out)
        assert {*done.predicted, "a.png", "kitchen/b.bmp"} == {"a.png", "kitchen/b.bmp"} and not done.failed
    with pytest.raises(ConfigError, match="a folder of its own"):
        predict_images(predictor, photos, photos)
    with pytest.raises(ConfigError, match="a folder of its own"):
        predict_images(predictor, photos / "a.png", photos / "kitchen/..")


def test_a_folder_with_other_things_is_not_written_to(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.png").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"mine holds a\.png and no predictions\.json"):
            predict_images(predictor, photos, tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(ConfigError, match="is a file"):
        predict_images(predictor, photos, tmp_path / "mine/a.png")
    assert (tmp_path / "mine/a.png").read_text() == "precious"


def test_a_page_that_was_tampered_with_deletes_nothing_elsewhere(
    predictor: Predictor, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious.png").write_text("precious")
    predict_images(predictor, photos, tmp_path / "out")
    page = json.loads((tmp_path / "out/predictions.json").read_text())
    page["images"]["x"] = {"files": ["../precious.png", str(tmp_path / "precious.png")]}
    page["asked"]["size"] = 1
    (tmp_path / "out/predictions.json").write_text(json.dumps(page))
    predict_images(predictor, photos, tmp_path / "out", overwrite=True)
    assert (tmp_path / "precious.png").read_text() == "precious"


def test_bad_pictures_are_named_and_the_rest_is_done(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.png").write_text("hello")
    (photos / "notes.txt").write_text("no picture")
    (photos / "._a.png").write_bytes(b"left by a file manager")
    odd = os.fsdecode(b"od\xffd\n[red].png")
    Image.fromarray(photo(8, 9)).save(photos / odd, format="PNG")
    with pytest.raises(DataError) as caught:
        predict.main([f"run={run}", f"images={photos}", f"out={tmp_path / 'out'}"])
    assert caught.value.exit_code == 1
    assert "1 could not be predicted" in str(caught.value) and "bad.png: no format" in str(caught.value)
    page = json.loads((tmp_path / "out/predictions.json").read_text())
    assert set(page["images"]) == {"a.png", "kitchen/b.bmp", odd} and set(page["failed"]) == {"bad.png"}
    Image.fromarray(photo(8, 9)).save(photos / "bad.png")
    imageio.imwrite(photos / "twelve.png", np.full((8, 9), 4000, np.uint16))
    capsys.readouterr()
    predict.main([f"run={run}", f"images={photos}", f"out={tmp_path / 'out'}"])
    page = json.loads((tmp_path / "out/predictions.json").read_text())
    assert page["failed"] == {} and page["images"]["twelve.png"]["bits"] == 12
    said = capsys.readouterr().out
    assert "Grey was taken to be of 12 bits, as no value is above 4095, in twelve.png." in said
    assert "1 other file was passed over (.txt 1)." in said


def test_a_folder_that_cannot_be_looked_into_is_named(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.scandir

    def refused(path: Any) -> Any:
        if Path(path).name == "kitchen":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path)

    monkeypatch.setattr(os, "scandir", refused)
    done = predict_images(predictor, photos, tmp_path / "out")
    assert done.predicted == ("a.png",) and done.failed == {"kitchen": "Permission denied"}
    with pytest.raises(DataError, match=r"kitchen cannot be looked into: Permission denied"):
        predict_images(predictor, photos / "kitchen", tmp_path / "other")


def test_nothing_to_predict_is_said(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match=r"No picture is in .*empty.*\.jpg, .*\.heic"):
        predict_images(predictor, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"there is no .*nowhere"):
        predict_images(predictor, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    Image.fromarray(photo(8, 9)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match='Did you mean "panels"'):
        predict_images(predictor, tmp_path / "a.png", tmp_path / "o", write=["panel"])
    with pytest.raises(ConfigError, match=r"nothing to write of edges"):
        predict_images(Predictor(predictor.trained, tasks=["edges"]), tmp_path / "a.png", tmp_path / "o", write=["png"])


def test_a_full_disk_is_one_message_and_what_is_done_stays(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = kept.flush

    def full(path: Path) -> None:
        if "b.npz" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        really(path)

    monkeypatch.setattr(kept, "flush", full)
    with pytest.raises(DataError, match=r"Cannot write .*b\.npz.*No space left on device.*same command again"):
        predict_images(predictor, photos, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.part"))
    monkeypatch.setattr(kept, "flush", really)
    assert predict_images(predictor, photos, tmp_path / "out").predicted == ("kitchen/b.bmp",)


def test_what_was_done_stays_after_ctrl_c(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, asked = predictor.several, []

    def interrupted(images: Any) -> Any:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return really(images)

    monkeypatch.setattr(predictor, "several", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_images(predictor, photos, tmp_path / "out")
    monkeypatch.undo()
    again = predict_images(predictor, photos, tmp_path / "out")
    assert (again.predicted, again.before) == (("kitchen/b.bmp",), 1)


def test_too_large_a_picture_is_left_out_and_the_rest_of_its_batch_is_done(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        Image.fromarray(photo(20, 30)).save(tmp_path / f"{name}.png")
    really, calls = predictor.model.forward, []

    def small(image: torch.Tensor, names: Any = None) -> Any:
        calls.append(len(image))
        if len(image) > 1 or len(calls) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return really(image, names)

    monkeypatch.setattr(predictor.model, "forward", small)
    done = predict_images(predictor, tmp_path, tmp_path / "out", batch=3)
    assert calls == [3, 1, 1, 1] and done.predicted == ("a.png", "c.png")
    assert "30 x 20 pixels, seen at 96 x 64" in done.failed["b.png"] and "max_size" in done.failed["b.png"]
    with pytest.raises(OutOfMemoryError):
        predictor.several([photo(20, 30)] * 2)


def test_a_name_too_long_for_its_outputs_is_named(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    name = "x" * 245 + ".png"
    Image.fromarray(photo(8, 9)).save(photos / name)
    done = predict_images(predictor, photos, tmp_path / "out")
    assert done.predicted == ("a.png", "kitchen/b.bmp") and "cannot be named" in done.failed[name]


def test_two_processes_do_not_write_at_once(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    from medusa_cl.rundir import locked

    (tmp_path / "out").mkdir()
    lock = locked(tmp_path / "out/.lock", "taken")
    with pytest.raises(ConfigError, match="Another process predicts into"):
        predict_images(predictor, photos, tmp_path / "out")
    lock.release()
    assert predict_images(predictor, photos, tmp_path / "out").predicted


def test_batches_write_what_single_pictures_do(run: Path, tmp_path: Path) -> None:
    for index in range(5):
        Image.fromarray(photo(40, 56 if index != 2 else 57, index)).save(tmp_path / f"{index}.png")
    (tmp_path / "3b.png").write_text("hello")
    seen: list[int] = []
    for batch in (1, 2):
        predictor = Predictor(run)
        predictor.model.backbone.register_forward_hook(lambda net, given, out: seen.append(len(given[0])))
        done = predict_images(predictor, tmp_path, tmp_path / f"out{batch}", batch=batch, write=["arrays"])
        assert len(done.predicted) == 5 and set(done.failed) == {"3b.png"}
    assert seen == [1] * 5 + [2, 1, 1, 1]
    for index in range(5):
        ours, theirs = (np.load(tmp_path / f"out{batch}/{index}.npz") for batch in (1, 2))
        assert np.allclose(ours["depth"], theirs["depth"], atol=1e-4)


# ---------------------------------------------------------------- what is drawn


def test_colours_are_those_of_the_plotting_library() -> None:
    shade = np.random.default_rng(0).random((50, 60)).astype(np.float32) * 1.4 - 0.2
    shade.ravel()[:4] = [0, 1, np.nan, np.inf]
    shade.ravel()[10:267] = np.arange(257) / 256
    for name in ("magma", "viridis"):
        expected = (matplotlib.colormaps[name](np.clip(shade, 0, 1))[..., :3] * 255).astype(np.uint8)
        assert np.array_equal(colours.coloured(name, shade), expected)
        assert np.array_equal(colours.coloured(name, shade.astype(np.float64)), expected)


def test_what_was_never_measured_is_black() -> None:
    drawn = tasks.depth().draw(np.array([[[0.0, -1.0, np.nan, 4.0, 8.0, 99.0]]], np.float32))[0]
    magma = (matplotlib.colormaps["magma"]([0.5, 1.0, 1.0])[:, :3] * 255).astype(np.uint8)
    assert not drawn[:3].any() and np.array_equal(drawn[3:], magma)
    unknown = tasks.regression(shown=(10, 20)).draw(np.array([[[-1e9, 10.0]]], np.float32))[0]
    assert unknown.tolist() == [[0, 0, 0], [68, 1, 84]]


def test_scales_of_colours() -> None:
    known = {"depth": (0, 8), "edges": (0, 1), "reshading": (0, 1), "curvature": (-5, 5)}
    assert {name: tasks.shown_range(tasks.BUILT_IN[name]()) for name in known} == known
    assert tasks.shown_range(tasks.regression(shown=(10, 40))) == (10, 40)
    assert tasks.shown_range(tasks.normals()) is None and tasks.shown_range(tasks.semseg(3)) is None
    nearer = tasks.drawn_up_to(tasks.depth(), 2.0)
    assert tasks.shown_range(nearer) == (0, 2)
    half = nearer.draw(np.array([[[1.0]]]))
    assert np.array_equal(half, tasks.depth().draw(np.array([[[4.0]]])))
    edges = tasks.edges()
    assert tasks.drawn_up_to(edges, 2.0) is edges


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (1, 3000), (3000, 1), (40, 56), (900, 600)])
def test_panels_are_of_a_size_to_look_at(predictor: Predictor, size: tuple[int, int]) -> None:
    image = photo(*size)
    drawn = predict_panel.panel(image, predictor(image), predictor.tasks, ("a name " * 50, "about it"))
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
    assert min(drawn.shape[:2]) > 200 and max(drawn.shape[:2]) < 2500


def test_a_panel_shows_the_picture_and_the_colours_of_each_task(run: Path) -> None:
    """Each pixel of a picture of 20x30, and of each answer, is a square of 14 pixels."""
    image, predictor = photo(20, 30), Predictor(run, tasks=["semseg", "normals"])
    answers = predictor(image)
    drawn = predict_panel.panel(image, answers, predictor.tasks, ("a", "b"))
    top = predict_panel.MARGIN + predict_panel.TITLE + predict_panel.HEADING
    labels = predictor.tasks["semseg"].draw(answers["semseg"])
    vectors = predictor.tasks["normals"].draw(answers["normals"].transpose(2, 0, 1))
    for column, tile in enumerate((image, labels, vectors)):
        left = predict_panel.MARGIN + column * (420 + predict_panel.GAP)
        large = np.repeat(np.repeat(tile, 14, axis=0), 14, axis=1)
        assert np.array_equal(drawn[top : top + 280, left : left + 420], large), column


def test_every_built_in_task_is_drawn() -> None:
    rng = np.random.default_rng(0)
    for name, make in tasks.BUILT_IN.items():
        task = make()
        values = rng.random((12, 10, task.channels)).astype(np.float32)
        labels = rng.integers(0, task.channels, (12, 10)).astype(np.uint8)
        answer = labels if task.output == "classes" else values[..., 0] if task.channels == 1 else values
        drawn = predict_panel.panel(photo(12, 10), {name: answer}, {name: task}, ("a", "b"))
        without = predict_panel.panel(photo(12, 10), {}, {}, ("a", "b"))
        assert drawn.shape[1] > without.shape[1], name


# ---------------------------------------------------------------- what is typed


def commands() -> list[list[str]]:
    lines = re.findall(r"^python -m medusa_cl\.predict(.*)$", PAGE, re.MULTILINE)
    return [line.split("#")[0].split() for line in lines]


def test_examples_of_the_help_are_understood() -> None:
    assert 3 <= len(USAGE.examples) <= 5
    for example in USAGE.examples:
        USAGE.parse(example.split("#")[0].split())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["write=[panel]"], 'Did you mean "panels"'),
        (["size=big"], "train, own, or a number"),
        (["size=0"], "train, own, or a number"),
        (["batch=0"], "at least 1"),
        (["tasks=[a,,b]"], "names with commas"),
        (["device=gpu"], '"gpu"'),
        (["taks=[depth]"], 'Did you mean "tasks"'),
        (["tasks=[dept]"], 'Did you mean "depth"'),
        (["run=nothing"], "found no model in nothing"),
    ],
)
def test_a_wrong_option_is_refused(run: Path, photos: Path, tmp_path: Path, wrong: list[str], message: str) -> None:
    given = [f"run={run}", f"images={photos}", f"out={tmp_path / 'out'}"]
    with pytest.raises(MedusaError, match=message):
        predict.main([one for one in given if one.split("=")[0] != wrong[0].split("=")[0]] + wrong)
    assert not (tmp_path / "out").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    predict.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {key}=" in said for key in USAGE.options)


def test_commands_of_the_page_run(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "runs/rooms/medusa-0")
    kept.write_summary(tmp_path / "runs/rooms/medusa-0", "{}")
    Image.fromarray(photo(8, 9)).save(photos / "kitchen.jpg")
    assert len(commands()) >= 5
    for arguments in commands():
        here = [a.replace("device=cuda", "device=cpu").replace("RUN", "runs/rooms/medusa-0") for a in arguments]
        predict.main(here)
        assert "pictures are predicted in" in capsys.readouterr().out


def test_the_python_of_the_page_runs(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "runs/rooms/medusa-0")
    kept.write_summary(tmp_path / "runs/rooms/medusa-0", "{}")
    predict.main(["run=last", f"images={photos}/a.png", "out=predictions", "tasks=[depth,semseg,normals]"])
    shutil.move("predictions/a.npz", "predictions/kitchen.npz")
    shutil.move("predictions/a_depth.png", "predictions/kitchen_depth.png")
    shutil.copy(photos / "a.png", "kitchen.jpg")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "predict.md", "exec"), {"frame": photo(48, 64)})


def test_the_page_names_the_options_and_outputs_there_are() -> None:
    options = set(re.findall(r"^\| `(\w+)=", PAGE, re.MULTILINE))
    assert options == set(USAGE.options)
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link


def test_the_times_on_the_page_are_those_measured() -> None:
    found = json.loads((ROOT / "benchmarks/results/predict.json").read_text())
    said = PAGE.split("## How long it takes")[1].split("\n## ")[0]
    assert float(re.findall(r"costs ([\d.]+) s", said)[0]) == round(found["beyond"]["cpu_s"], 1) <= 3
    net = [f"{spent:.0f}" for name, spent in found["parts"].items() if name.startswith("net")]
    assert re.findall(r"(\d+) ms", said) == net


BLOCKED = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is walled off")

sys.meta_path.insert(0, Wall())
import runpy
sys.argv = ["predict", *{arguments}]
try:
    runpy.run_module("medusa_cl.predict", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
print("loaded", *sorted({{name.split(".")[0] for name in sys.modules}}))
"""


def test_predicting_needs_no_training_library(run: Path, photos: Path, tmp_path: Path) -> None:
    blocked = {"avalanche", "mlflow", "h5py", "torchmetrics", "hydra", "omegaconf"}
    arguments = [f"run={run}", f"images={photos}", f"out={tmp_path / 'out'}"]
    code = BLOCKED.format(blocked=blocked, arguments=arguments)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split("loaded")[-1].split())
    assert {"torch", "timm"} <= loaded
    assert not loaded & (blocked | {"matplotlib"})  # slow to import, and only drawn figures need it
    assert (tmp_path / "out/kitchen/b_depth.png").is_file()
