from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medusa_cl.errors import ConfigError
from medusa_cl.models import ControlHead, LinearHead, MedusaHead, PlainHead
from medusa_cl.models.attention import MSA_MODES, SFA_MODES

CHANNELS = (8, 12, 16, 24)
HRNET = (18, 36, 72, 144)
GATED = {"sfa": "gated", "msa": "gated", "mix_width": None}


@pytest.fixture
def features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, c, 16 // 2**s, 24 // 2**s, generator=generator) for s, c in enumerate(CHANNELS)]


def randomised(head: nn.Module) -> nn.Module:
    """Give BatchNorm statistics and scales that are not those of an identity, so that nothing hides behind them."""
    generator = torch.Generator().manual_seed(1)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return head


@pytest.mark.parametrize("sfa", SFA_MODES)
@pytest.mark.parametrize("msa", MSA_MODES)
@pytest.mark.parametrize("head", [MedusaHead, ControlHead])
def test_every_attention_switch_gives_logits_at_stride_4(
    head: Callable[..., nn.Module], sfa: str, msa: str, features: list[Tensor]
) -> None:
    made = head(CHANNELS, 5, sfa=sfa, msa=msa)
    logits, initial = made(features)
    assert logits.shape == (3, 5, 16, 24)
    assert [tuple(x.shape) for x in initial] == [(3, 5, *x.shape[2:]) for x in features]
    logits.square().mean().backward()
    learning = {name for name, p in made.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    idle = {name for name, _ in made.named_parameters()} - learning
    assert all(name.startswith("initial.") for name in idle)


@pytest.mark.parametrize("options", [{"refine_blocks": n} for n in (0, 1, 2)] + [{"width": 6}, {"mix_width": None}, {}])
def test_every_size_switch_gives_logits_at_stride_4(options: dict[str, Any], features: list[Tensor]) -> None:
    head = MedusaHead(CHANNELS, 2, **options)
    assert head(features)[0].shape == (3, 2, 16, 24)
    assert head.config.items() >= options.items()
    again = MedusaHead(CHANNELS, 2, **head.config)
    again.load_state_dict(head.state_dict())


@pytest.mark.parametrize("msa", MSA_MODES)
@pytest.mark.parametrize("mix_width", [None, 7])
def test_late_mix_is_the_same_function(msa: str, mix_width: int | None, features: list[Tensor]) -> None:
    late = randomised(MedusaHead(CHANNELS, 4, msa=msa, mix_width=mix_width)).eval()
    plain = MedusaHead(CHANNELS, 4, msa=msa, mix_width=mix_width, late_mix=False).eval()
    plain.load_state_dict(late.state_dict())
    torch.testing.assert_close(late(features)[0], plain(features)[0], rtol=1e-5, atol=1e-5)


def test_plain_head_is_concat_1x1_bn_relu_1x1(features: list[Tensor]) -> None:
    head = randomised(PlainHead(CHANNELS, 4)).eval()
    up = [nn.functional.interpolate(x, size=(16, 24), mode="bilinear", align_corners=False) for x in features]
    kernel = torch.cat([head.mix.scales[s].weight for s in range(4)], dim=1)
    mixed = nn.functional.conv2d(torch.cat(up, dim=1), kernel)
    logits, initial = head(features)
    torch.testing.assert_close(logits, head.predict(mixed), rtol=1e-5, atol=1e-5)
    assert initial == ()
    assert kernel.shape == (sum(CHANNELS), sum(CHANNELS), 1, 1)


def test_linear_head_is_one_linear_map_of_standardised_channels(features: list[Tensor]) -> None:
    head = LinearHead(CHANNELS, 4).eval()
    generator = torch.Generator().manual_seed(1)
    head.bias.data = torch.randn(4, generator=generator)
    for norm in head.norms:
        norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
        norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
    up = torch.cat([nn.functional.interpolate(x, size=(16, 24), mode="bilinear") for x in features], 1).double()
    mean, var = (torch.cat([getattr(n, f"running_{k}") for n in head.norms]).double() for k in ("mean", "var"))
    weight = torch.cat([head.mix.scales[s].weight for s in range(4)], 1)[:, :, 0, 0].double()
    standard = (up - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()
    expected = torch.einsum("kc,bchw->bkhw", weight, standard) + head.bias.double().view(1, -1, 1, 1)
    logits, initial = head(features)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    assert initial == ()
    assert _size(head) == 4 * sum(CHANNELS) + 4  # nothing else is learnt


def test_linear_head_learns_alike_from_large_and_small_features(features: list[Tensor]) -> None:
    heads = LinearHead(CHANNELS, 4), LinearHead(CHANNELS, 4)
    heads[1].load_state_dict(heads[0].state_dict())
    small, large = (head([x * size for x in features])[0] for head, size in zip(heads, (1, 1000), strict=True))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)


def test_initial_predictions_are_for_training_only(features: list[Tensor]) -> None:
    assert MedusaHead(CHANNELS, 4).eval()(features)[1] == ()
    assert MedusaHead(CHANNELS, 4, deep_supervision=False).train()(features)[1] == ()
    assert len(MedusaHead(CHANNELS, 4).train()(features)[1]) == 4


def test_light_head_is_the_default_and_about_a_million_parameters() -> None:
    head = MedusaHead(HRNET, 40)
    assert head.config["sfa"] == head.config["msa"] == "mask"
    assert 0.95e6 < _size(head) < 1.1e6


@pytest.mark.parametrize("options", [{}, GATED, {"msa": "scale_softmax"}, {"refine_blocks": 0, "width": 32}])
@pytest.mark.parametrize("channels", [HRNET, CHANNELS])
def test_control_has_the_size_of_medusa(options: dict[str, Any], channels: tuple[int, ...]) -> None:
    assert _size(ControlHead(channels, 40, **options)) == pytest.approx(
        _size(MedusaHead(channels, 40, **options)), rel=0.02
    )


def test_without_refinement_the_attentions_stand_in_series(features: list[Tensor]) -> None:
    first = MedusaHead(CHANNELS, 4, sfa="mask", msa="none", refine_blocks=0).eval()
    second = MedusaHead(CHANNELS, 4, sfa="none", msa="mask", refine_blocks=0).eval()
    second.load_state_dict({key.replace("sfa.", "msa."): value for key, value in first.state_dict().items()})
    assert torch.equal(first(features)[0], second(features)[0])


def test_a_head_in_eval_answers_the_same_bits(features: list[Tensor]) -> None:
    head = MedusaHead(CHANNELS, 4).eval()
    assert torch.equal(head(features)[0], head(features)[0])


def test_channels_last_features_are_taken(features: list[Tensor]) -> None:
    head = randomised(MedusaHead(CHANNELS, 4)).eval()
    last = [x.to(memory_format=torch.channels_last) for x in features]
    torch.testing.assert_close(
        head(features)[0], head.to(memory_format=torch.channels_last)(last)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("head", [MedusaHead, ControlHead])
def test_unknown_switch_values_come_with_the_nearest(head: Callable[..., nn.Module]) -> None:
    with pytest.raises(ConfigError, match=r'sfa "msk".*Did you mean "mask"'):
        head(CHANNELS, 4, sfa="msk")
    with pytest.raises(ConfigError, match=r'msa "scale_sofmax".*Did you mean "scale_softmax"'):
        head(CHANNELS, 4, msa="scale_sofmax")
    with pytest.raises(ConfigError, match=r"refine_blocks.*got 3"):
        head(CHANNELS, 4, refine_blocks=3)


def test_scale_softmax_is_no_value_of_sfa() -> None:
    with pytest.raises(ConfigError, match=r"Known: gated, mask, none"):
        ControlHead(CHANNELS, 4, sfa="scale_softmax")


def _size(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())
