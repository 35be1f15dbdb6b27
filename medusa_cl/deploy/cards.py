"""The model card of a pack: what a head predicts, how it was learnt, what it reached and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREDICTS = {
    "semseg": "The class of every pixel, counted from 0",
    "human_parts": "The part of a person that every pixel shows, counted from 0",
    "saliency": "How salient every pixel is, from 0 to 1",
    "edges": "How likely an edge runs through every pixel, from 0 to 1",
    "depth": "Depth along the optical axis, in metres",
    "normals": "Unit surface normals in the camera's frame, x right, y down, z forward",
    "reshading": "Brightness under a light at the camera, where 0 is dark and 1 is bright",
    "albedo": "The colour of every pixel without light, sRGB from 0 to 1",
    "keypoints2d": "How much of a 2D keypoint every pixel is, where targets lie from 0 to 1",
    "curvature": "The two principal curvatures, in 1/m",
}
_PIPELINES = {"semseg": "image-segmentation", "human_parts": "image-segmentation", "depth": "depth-estimation"}
# What model hubs call licences that they know; any other is "other" there, with its name.
_HUB_LICENCES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
                 "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0")  # fmt: skip
_CITATION = """@inproceedings{spencer2022medusa,
  title     = {Medusa: Universal Feature Learning via Attentional Multitasking},
  author    = {Spencer, Jaime and Bowden, Richard and Hadfield, Simon},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops},
  year      = {2022}
}"""


def card(said: Mapping[str, Any], *, picture: bool, whole: bool) -> str:
    """Return a model card: YAML that hubs read, then text that people do.

    Args:
        said: What pack.json says.
        picture: Whether there is a picture, panel.png, beside it.
        whole: Whether the backbone is.
    """
    import yaml

    front = yaml.safe_dump(_front(said), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---\n\n# {said['task']['name']} on {said['backbone']['name']}",
        predicts(said["task"]),
        *(["![The latest predictions of the run](panel.png)"] if picture else []),
        "## Numbers\n\n" + _numbers(said),
        "## How it was learnt\n\n" + _history(said),
        "## How to use it\n\n" + _usage(said, whole),
        "## Intended use and limits\n\n" + _limits(said),
        "## Licence\n\n" + _licence(said, whole),
        f"## Citation\n\n```bibtex\n{_CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def predicts(task: Mapping[str, Any]) -> str:
    """Return a sentence or two about what a task, as `DenseTask.describe` describes it, predicts."""
    from medusa_cl.deploy.predictor import shape_of
    from medusa_cl.tasks import BUILT_IN, from_description

    kind, options = task["kind"], task["options"]
    if kind not in BUILT_IN:
        return f"{task['name']}, a task of its author's own (kind {kind}, {task['channels']} channels)."
    classes = options.get("classes") or ()
    named = " The classes are " + ", ".join(f"{i} {name}" for i, name in enumerate(classes)) + "." if classes else ""
    unit = f", in {options['unit']}" if options.get("unit") else ""
    return f"{PREDICTS.get(kind, task['name'] + unit)}: {shape_of(from_description(task))}.{named}"


def _licence(said: Mapping[str, Any], whole: bool) -> str:
    def by(one: Mapping[str, Any]) -> str:
        return f"{one['licence']}, by {one['author']}" if one["author"] else str(one["licence"])

    lines = [f"{by(said)}."]
    lines += [f"The head came from a pack under {by(one)}." for one in said.get("came", ())]
    if whole:
        lines.append(f"That is the licence of the head alone. {backbone_licence(said)}")
    return "\n\n".join(lines)


def backbone_licence(said: Mapping[str, Any]) -> str:
    """Return what is known of the licence of a backbone that comes along."""
    name, known = said["backbone"]["name"], said["backbone_licence"]
    if known is None:
        return f"The licence of the weights of the backbone, {name}, is unknown: ask who published them."
    return f"Weights that timm publishes as {name} are under {known}; those of the backbone here may come from them."


def _front(said: Mapping[str, Any]) -> dict[str, Any]:
    licence, task = said["licence"].lower().removesuffix("-only").removesuffix("-or-later"), said["task"]
    known = licence in _HUB_LICENCES
    tags = ["dense-prediction", "continual-learning", "multi-task-learning", task["kind"], said["backbone"]["name"]]
    front = {
        "license": licence if known else "other",
        **({} if known else {"license_name": licence}),
        "library_name": "medusa_cl",
        "pipeline_tag": _pipeline(task),
        "tags": list(dict.fromkeys(tags)),
    }
    if said["learnt"] is None:
        return front
    return front | {"datasets": [_data_name(said)], "metrics": [said["metrics"]["metric"]], **_results(said)}


def _pipeline(task: Mapping[str, Any]) -> str:
    return _PIPELINES.get(task["kind"], "image-to-image")


def _data_name(said: Mapping[str, Any]) -> str:
    return str(said["learnt"]["scenario"]).removesuffix("_incremental")


def _results(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers in the form in which hubs show them beside those of other models."""
    task, metrics, data = said["task"], said["metrics"], _data_name(said)
    if metrics["value"] is None:
        return {}
    name = f"{metrics['metric']} ({metrics['unit']})" if metrics["unit"] else metrics["metric"]
    result = {
        "task": {"type": _pipeline(task), "name": task["name"]},
        "dataset": {"type": data, "name": data, "split": metrics["split"]},
        "metrics": [{"type": metrics["metric"], "value": metrics["value"], "name": name}],
    }
    return {"model-index": [{"name": f"{task['name']} on {said['backbone']['name']}", "results": [result]}]}


def _numbers(said: Mapping[str, Any]) -> str:
    metrics = said["metrics"]
    if metrics is None or metrics["value"] is None:
        return "None: the head was packed from a model without its run, or it was not evaluated."
    better = "higher" if metrics["higher_is_better"] else "lower"
    unit = f", {metrics['unit']}" if metrics["unit"] else ""
    rows = [("**this head**", metrics["value"])]
    if metrics["just_learnt"] != metrics["value"]:
        rows.append(("this head, before later tasks were learnt", metrics["just_learnt"]))
    rows += [(f"reference `{name}`", value) for name, value in metrics["references"].items()]
    lines = [f"| | {metrics['metric']}{unit} ({better} is better) |", "|---|---|"]
    lines += [f"| {name} | {value:.4g} |" for name, value in rows]
    labels = said["learnt"]["labels"]
    return "\n".join(lines) + f"\n\nOn the {metrics['split']} split." + (f" Its labels: {labels}." if labels else "")


def _history(said: Mapping[str, Any]) -> str:
    backbone, learnt = said["backbone"], said["learnt"]
    lines = [("backbone", f"{backbone['name']}, weights `{backbone['hash']}`")]
    kind = f"{said['head']['class']}, {said['parameters']:,} parameters"
    lines.append(("head", kind))
    if learnt is not None:
        base = _learnt_as(said) in learnt["base"]
        steps = learnt["trainer"]["base_steps" if base else "max_steps"]
        epochs = f"{learnt['trainer']['epochs']} epochs" if steps is None else f"at most {steps} steps"
        together = "with the backbone, together with all base tasks" if base else "after " + ", ".join(_before(said))
        size = "x".join(map(str, learnt["image_size"])) if learnt["image_size"] else "as stored"
        hashes = ", ".join(f"{split} `{digest[:12]}`" for split, digest in learnt["data_hash"].items())
        lines += [
            ("data", f"{learnt['scenario']}, images {size}, {hashes}"),
            ("learnt", f"{together}; {epochs} of {learnt['trainer']['batch_size']} images, seed {learnt['seed']}"),
            ("strategy", f"{learnt['strategy']}, backbone {'frozen' if learnt['frozen'] else 'trained on'}"),
            ("software", ", ".join(f"{k} {v}" for k, v in learnt["packages"].items() if k in ("torch", "timm"))),
        ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in lines)])


def _before(said: Mapping[str, Any]) -> list[str]:
    order = [*said["learnt"]["base"], *said["learnt"]["stream"]]
    return order[: order.index(_learnt_as(said))]


def _learnt_as(said: Mapping[str, Any]) -> str:
    """Return the name that a task had where it was learnt."""
    return str(said["learnt"].get("task") or said["task"]["name"])


def _usage(said: Mapping[str, Any], whole: bool) -> str:
    name, backbone = said["task"]["name"], said["backbone"]
    given = "" if whole else "run=MODEL "
    needs = (
        "The backbone is in the pack."
        if whole
        else f"MODEL is a run, or a model, with backbone {backbone['name']} of weights {backbone['hash'][:12]}."
    )
    return f"""PACK is this folder, or its address. {needs}

```sh
python -m medusa_cl.heads add {given}head=PACK out=model_with_{name}
python -m medusa_cl.predict run=model_with_{name} images=photos out=predictions tasks=[{name}]
```"""


def _limits(said: Mapping[str, Any]) -> str:
    learnt = said["learnt"]
    like = "the images that it was learnt on" if learnt is None else f"those of {_data_name(said)}"
    numbers = "There are no numbers" if learnt is None else "The numbers above are of that data alone: there are none"
    return (
        f"For images like {like}. {numbers} for other cameras, scenes or sizes of images, so measure before you rely "
        "on it. It fits the backbone of that hash and no other, with which it answers as where it was learnt."
    )
