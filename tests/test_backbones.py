import copy
import operator

import pytest
import torch
from torch import nn

from nets import images
from pqd.backbones import build
from pqd.backbones.build import BUILDERS
from pqd.backbones.resnet import CifarResNet, resnet18, resnet18_imagenet_stem
from pqd.backbones.vgg import vgg16_bn
from pqd.backbones.wrn import WideResNet
from pqd.config import BackboneConfig
from pqd.errors import UserError
from traces import assert_same_function, channels_last, traced


def named(name: str, **kwargs) -> BackboneConfig:
    return BackboneConfig(builder=name, name=name, kwargs=kwargs)


def timm_net(name: str, **kwargs) -> BackboneConfig:
    return BackboneConfig(builder="timm", name=name, kwargs=kwargs)


# At 10 and 100 classes, from the papers and torchvision.
PARAMETERS = {
    "resnet18": (11_173_962, 11_220_132),
    "resnet18_imagenet_stem": (11_181_642, 11_227_812),
    "resnet20": (272_474, 278_324),
    "resnet8": (78_042, 83_892),
    "vgg16_bn": (14_728_266, 14_774_436),
    "wrn28_10": (36_479_194, 36_536_884),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_parameter_counts_are_the_published_ones(name):
    for classes, published in zip((10, 100), PARAMETERS[name], strict=True):
        with torch.device("meta"):
            net = build(named(name), classes, channels=3, image_size=32)
        assert sum(p.numel() for p in net.parameters()) == published


def test_the_papers_network_is_42_65_mebibytes():
    with torch.device("meta"):
        net = build(named("resnet18_imagenet_stem"), classes=10, channels=3, image_size=32)
    assert round(sum(p.numel() for p in net.parameters()) * 4 / 2**20, 2) == 42.65


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet18(10, 3, 8),
        lambda: resnet18_imagenet_stem(10, 3, 8),
        lambda: CifarResNet(blocks=1, classes=10, channels=3),
        lambda: vgg16_bn(10, 3, 8),
        lambda: WideResNet(depth=10, width=1, classes=10, channels=3),
    ],
    ids=["resnet18", "resnet18_imagenet_stem", "cifar_resnet", "vgg16_bn", "wide_resnet"],
)
def test_a_traced_network_computes_what_the_untraced_one_does(make):
    untraced = make()
    assert_same_function(traced(copy.deepcopy(untraced)), untraced)


# Their features: BatchNormAct2d and squeeze-excitation; functional dropout and split channels;
# stochastic depth; padding that depends on the image size; a pool that does.
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("mobilenetv3_small_050", {"drop_rate": 0.5}),
        ("ghostnet_050", {}),
        ("test_resnet", {"drop_path_rate": 0.5}),
        ("tf_mobilenetv3_small_minimal_100", {}),
    ],
)
def test_timm_networks_compute_what_timm_does(name, kwargs):
    import timm

    torch.manual_seed(0)
    traced = build(timm_net(name, **kwargs), classes=7, channels=1, image_size=8)
    torch.manual_seed(0)
    assert_same_function(traced, timm.create_model(name, num_classes=7, in_chans=1, **kwargs), 1)


def test_arguments_of_timm_may_be_called_as_ours_are():
    net = build(timm_net("resnet18", channels=(8, 8, 8, 16)), classes=7, channels=1, image_size=32)
    assert net.get_submodule("layer4.0.conv1").weight.shape[0] == 16
    assert net.get_submodule("conv1").weight.shape[1] == 1


# What they branch on depends on the image size, or they are transformers.
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("tf_efficientnet_lite0", {}),
        ("vgg11", {"drop_rate": 0.0}),
        ("mobilevit_xxs", {}),
        ("vit_tiny_patch16_224", {"img_size": 32}),
        ("deit_tiny_patch16_224", {"img_size": 32}),
        ("mixer_s32_224", {"img_size": 32}),
        ("swin_tiny_patch4_window7_224", {"img_size": 56}),
    ],
)
def test_networks_of_a_fixed_image_size_compute_what_timm_does(name, kwargs):
    import timm

    size = kwargs.get("img_size", 32)
    torch.manual_seed(0)
    traced = build(timm_net(name, **kwargs), classes=7, channels=3, image_size=size).eval()
    torch.manual_seed(0)
    untraced = timm.create_model(name, num_classes=7, in_chans=3, **kwargs).eval()
    assert {n for n, _ in traced.named_parameters()} == {n for n, _ in untraced.named_parameters()}
    with torch.no_grad():
        for batch in (1, 5):
            x = channels_last(batch, size)
            torch.testing.assert_close(traced(x), untraced(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["edgenext_xx_small", "xcit_nano_12_p16_224"])
def test_a_network_that_reads_the_weight_of_a_layer_is_refused(name):
    kwargs = {"img_size": 64} if "xcit" in name else {}
    with pytest.raises(UserError, match=r"reads the weight of layer .*token_projection"):
        build(timm_net(name, **kwargs), classes=7, channels=3, image_size=64)


def custom(classes: int, channels: int, image_size: int, width: int = 4, wrong: str = ""):
    """A builder of one's own, found by its dotted path."""
    if wrong == "raises":
        raise RuntimeError("too\nwide")
    if wrong == "returns":
        return [classes]
    return nn.Sequential(
        nn.Conv2d(channels, width, image_size), nn.Flatten(), nn.Linear(width, classes)
    )


def test_a_network_of_ones_own_is_found_by_its_path():
    cfg = BackboneConfig(builder=f"{__name__}.custom", name="mine", kwargs={"width": 6})
    net = build(cfg, classes=10, channels=3, image_size=8)
    assert net.get_submodule("0").weight.shape == (6, 3, 8, 8)


@pytest.mark.parametrize(
    ("builder", "kwargs", "message"),
    [
        ("nowhere.build", {}, "nowhere.build cannot be imported: ModuleNotFoundError.*PYTHONPATH"),
        (f"{__name__}.nothing", {}, "nothing cannot be imported: AttributeError: .*is accepted"),
        (f"{__name__}.custom", {"depth": 3}, "custom fails with classes=10, .*TypeError: .*depth"),
        (
            f"{__name__}.custom",
            {"classes": 3},
            "TypeError: .*multiple values for argument 'classes'",
        ),
        (f"{__name__}.custom", {"wrong": "raises"}, "RuntimeError: too wide$"),
        (f"{__name__}.custom", {"wrong": "returns"}, "custom returns list; an nn.Module is needed"),
    ],
)
def test_a_path_that_is_wrong_is_one_clear_line(builder, kwargs, message):
    with pytest.raises(UserError, match=rf"^backbone\.builder=.*{message}") as caught:
        build(BackboneConfig(builder=builder, name="mine", kwargs=kwargs), 10, 3, 8)
    assert "\n" not in str(caught.value)


def test_the_graph_holds_whole_layers_and_nothing_that_computes_nothing():
    net = build(timm_net("mobileone_s0"), classes=10, channels=3, image_size=32)
    kinds = {
        type(net.get_submodule(n.target)) if n.op == "call_module" else n.target
        for n in net.graph.nodes
        if n.op.startswith("call_")
    }
    assert kinds == {
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear),
        nn.MaxPool2d,  # the stride of the 1x1 convolution that reads the images
        operator.add,
    }
    for node in net.graph.nodes:
        assert node.target is not operator.add or len(node.all_input_nodes) == 2


def test_building_twice_gives_the_same_graph_and_the_same_weights():
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(build(named("resnet20"), classes=10, channels=1, image_size=8))
    assert nets[0].code == nets[1].code
    first, second = (dict(net.state_dict()) for net in nets)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["resnet18_imagenet_stem", "resnet20", "vgg16_bn"])
def test_small_gray_images_fit(name):
    net = build(named(name), classes=10, channels=1, image_size=8).eval()
    assert net(images(3, channels=1)).shape == (3, 10)


def test_vgg_has_the_same_parameter_names_for_every_image_size():
    with torch.device("meta"):
        sizes = [build(named("vgg16_bn"), 10, 3, size).state_dict() for size in (1, 8, 32, 64)]
    assert len({tuple(sorted(state)) for state in sizes}) == 1


def test_wrong_logits_are_refused(monkeypatch):
    monkeypatch.setitem(BUILDERS, "mine", lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    with pytest.raises(UserError, match=r"returns \[2, 3\] .* shape \[2, 10\] are needed"):
        build(named("mine"), classes=10, channels=3, image_size=2)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (named("resnet19"), "backbone.builder=resnet19 is unknown.*did you mean resnet18.*timm"),
        (named("resnet20", depth=3), r"backbone.kwargs=\{'depth': 3\}: only backbone.builder=timm"),
        (timm_net("mobilenet_v2_050"), "unknown to timm .*mobilenetv2_050"),
        (timm_net("qqqqqqqqqqqq"), r"unknown to timm .*timm.list_models\(\)"),
        (timm_net("test_resnet", depht=3), "cannot build backbone.name=test_resnet .*depht"),
        (timm_net("test_resnet", num_classes=3), "cannot build .*num_classes"),
        (BackboneConfig("timm", "test_resnet", {"name": 3}), "cannot build .*'name'"),
        (BackboneConfig("timm", "test_resnet", {"classes": 3}), "cannot build .*'classes'"),
        (BackboneConfig("timm", "test_resnet", {"model_name": "x"}), "cannot build .*'model_name'"),
        (timm_net("test_nfnet"), r"compressed: layer .* \(ScaledStdConv2d\)"),
        (timm_net("ghostnetv2_100"), r"images of shape \[3, 32, 32\] .*too small"),
    ],
)
def test_bad_input_is_one_clear_line(cfg, message):
    with pytest.raises(UserError, match=message) as caught:
        build(cfg, classes=10, channels=3, image_size=32)
    assert "\n" not in str(caught.value)
