"""The package restores an ONNX file bit for bit, near the entropy floor, in every version."""

import base64
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from pqd.package import context, cuts, floor_bytes, pack, tables, unpack, unpack_bytes
from pqd.package.format import HEADER
from tiny_onnx import laplace, model_bytes


def restored(folder, content):
    model, packed, back = (Path(folder, name) for name in ("m.onnx", "m.pqd", "back.onnx"))
    model.write_bytes(content)
    assert pack(model, packed) == packed.stat().st_size
    unpack(packed, back)
    return back.read_bytes() == content


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize(
    "shape",
    [
        (16, 8, 3, 3),
        (32, 16, 1, 1),
        (64, 1, 3, 3),
        (7, 5, 5, 5),
        (4, 3, 7, 7),
        (3, 4, 9, 9),
        (40, 30),
        (9, 6, 13),
        (1, 300),
        (300, 1),
        (5, 4, 3, 3, 3),
        (2, 3),
    ],
)
def test_restores_any_shape_and_sparsity(tmp_path, shape, sparsity):
    assert restored(tmp_path, model_bytes(laplace(shape, sparsity)))


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [np.zeros((0, 3), np.int8), np.zeros((2, 0, 3, 3), np.int8)],
        [np.int8(5).reshape(())],
        [np.full((20, 20), 7, np.int8)],
        [np.full((20, 20, 3, 3), -128, np.int8)],
        [np.arange(-128, 128, dtype=np.int8).repeat(4).reshape(32, 32)],
        [np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)],
        [np.random.default_rng(0).normal(size=(8, 64)).astype(np.float16)],
        [laplace((8, 8, 3, 3), 0.5), np.arange(9.0), laplace((10, 64), 0.9), np.int32([1, 2])],
        [np.arange(600, dtype=np.uint8).reshape(20, 30), laplace((600,), 0.5)],
    ],
    ids=["none", "empty", "scalar", "one", "lowest", "all", "fp32", "fp16", "mixed", "others"],
)
def test_restores_any_content(tmp_path, tensors):
    assert restored(tmp_path, model_bytes(*tensors))


@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(*[st.integers(1, 12)] * 2, *[st.integers(1, 4)] * 2), min_size=1, max_size=3
    ),
    sparsity=st.floats(0, 1),
    scale=st.floats(0.1, 200),
    seed=st.integers(0, 2**32 - 1),
)
def test_restores_whatever_is_packed(shapes, sparsity, scale, seed):
    tensors = [laplace(shape, sparsity, seed + i, scale) for i, shape in enumerate(shapes)]
    with tempfile.TemporaryDirectory() as folder:
        assert restored(folder, model_bytes(*tensors))


def test_restores_tensors_cut_into_blocks(tmp_path, monkeypatch):
    content = model_bytes(
        laplace((50, 6, 3, 3), 0.5), laplace((100, 90), 0.5), laplace((9, 500), 0)
    )
    for name, value in {"BLOCK_CODES": 1000, "BLOCKS": 7, "SIDE": 300}.items():
        monkeypatch.setattr(cuts, name, value)
    assert restored(tmp_path, content)
    assert HEADER.unpack_from((tmp_path / "m.pqd").read_bytes())[2] == 7


def test_products_of_scales_are_not_stored(tmp_path):
    rng = np.random.default_rng(0)
    factors = rng.random(3, np.float32)
    scales = rng.random((3, 200), np.float32)
    both = [t for i in range(3) for t in (scales[i], scales[i] * factors[i])]
    tensors = [*factors.reshape(3, 1), *both]
    assert restored(tmp_path, model_bytes(*tensors))
    with_products = (tmp_path / "m.pqd").stat().st_size
    assert restored(tmp_path, model_bytes(*factors.reshape(3, 1), *scales))
    assert with_products - (tmp_path / "m.pqd").stat().st_size < 3 * 40


def test_numbers_that_machines_multiply_differently_are_stored(tmp_path):
    scales = np.float32([np.nan, np.inf, 1e-40, -0.0, 0.0, 1, 2, 3])
    assert restored(tmp_path, model_bytes(np.float32(0.5), scales, scales * np.float32(0.5)))
    assert HEADER.unpack_from((tmp_path / "m.pqd").read_bytes())[2] == 0


def test_same_model_gives_the_same_package(tmp_path):
    model = tmp_path / "tiny.onnx"
    model.write_bytes(model_bytes(laplace((8, 8, 3, 3), 0.8), np.ones(3, np.float32)))
    packages = [tmp_path / "one.pqd", tmp_path / "two.pqd"]
    for package in packages:
        pack(model, package)
    assert packages[0].read_bytes() == packages[1].read_bytes()


def test_floor_is_the_entropy_of_each_tensor(tmp_path):
    model = tmp_path / "m.onnx"
    halves = np.repeat(np.int8([0, 1, 2, -3]), [32, 16, 8, 8]).reshape(8, 8)  # 1.75 bits per code
    bytes_ = np.arange(-128, 128, dtype=np.int8).reshape(16, 4, 2, 2)  # 8 bits per code
    for tensors, expected in [
        ([halves], 14),
        ([bytes_], 256),
        ([halves, bytes_, np.zeros((9, 9), np.int8)], 270),  # tensors do not share a histogram
        ([np.int8([[0, 1, 1]])], 1),  # 2.75 bits, rounded up
        ([np.ones((4, 4), np.float32), np.int8([1, 2, 3])], 0),  # no weights
    ]:
        model.write_bytes(model_bytes(*tensors))
        assert floor_bytes(model) == expected


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
def test_independent_weights_cost_the_floor(tmp_path, sparsity):
    """The worst case: there is no context to profit from."""
    model = tmp_path / "m.onnx"
    model.write_bytes(
        model_bytes(laplace((128, 128, 3, 3), sparsity), laplace((10, 512), sparsity))
    )
    assert pack(model, tmp_path / "m.pqd") < 1.01 * floor_bytes(model) + 1000


def test_structured_weights_cost_less_than_the_floor(tmp_path):
    """Half of the channels are empty, and neighbours in a kernel are alike."""
    weights = laplace((64, 64, 1, 1), 0.5).repeat(9, axis=3).reshape(64, 64, 3, 3)
    weights[::2] = 0
    model = tmp_path / "m.onnx"
    model.write_bytes(model_bytes(weights))
    assert pack(model, tmp_path / "m.pqd") < 0.65 * floor_bytes(model)


def test_a_model_of_zeros_is_padded(tmp_path):
    content = model_bytes(np.zeros(5_000_000, np.float32))
    assert restored(tmp_path, content)
    assert (tmp_path / "m.pqd").stat().st_size == -(-(len(content) - 2**24) // 1000)


def test_tables_are_the_same_on_every_machine():
    """No entry is so near a rounding tie that another machine's logarithm could turn it."""
    share = np.arange(1, 4096)
    for exact in (
        16 * np.log2(np.arange(1, len(context.LOG2))),
        16 * np.log2(share / (4096 - share)),
        tables.ZERO_PRIOR,
        tables.VALUE_PRIOR,
    ):
        assert np.abs(exact % 1 - 0.5).min() > 1e-6


GOLDEN = (
    "iBM5Q0RRI4`~(0100000k^lez00000Bmw{c00000UtgI3(r7K|;%`pWU>W9=Zi&nP_g4_ixW5*?diDO^0zo$uhd-X%"
    ">G|*cV&vsApNJNg8Sd=&UTvYk4HlUKD77#BAh%5f0OH6TAdpQ5_{(NyKEus=tGio1U&sDvEj9wj07tC!3l7<Pr%0Vs"
    "a-AM6tE;Bz|55f!^>6TR@9+MT+b~-TTt-&Og`L`64jy=JHUO`J&52gZl$i+*LVHO=5TAno{|7#Z<GTO+pOXKN|HJ=!"
    "`k((3|B(j=0DG$5J91!azyx$NF9e7pyGo-{D+GldOK0$AIi^-&&JW{DH8y~+UqsUA*g6lp4Eiiu+<pl$LP14B9g&=P"
    "kNb!H%}ED1Vf4P6q@~@v=N-w-ysTUO7h&Pm@WYI?`$5UEnB6R2wRIBrDByzROq6MeDQ=tr$Kh!l@8w!aI4oyJ5@qnu"
    "<2HKI7VT}?>J)EtJ2vg)kM-FvbIKxhks4++Z9|&`y#%1;M0<qv9`ehV#h|b>j2MkD+)B4%Q#j2r?+@UkFmxDc=gTBZ"
    ">!n}FYQq6FOCt{q!+$$GPon`)5cf_kWL43OM55QrWPMP7FA=RjEKV<osUpfaMe8HY-;g=%5CRXLwzpeLSE*pd)~gMG"
    "+6s_LiGI($U0_+{qZqqEc-__Ji!o>_^)O&T@JPJZn-a}1g8V)tqRE{$aG?*>NViiL4_S`ENBvYtYFeqP^imeO5-aCz"
    "I?G0|wJ9Yt^szw4a!6?RD7NVzh};Trj^_n__{YLcLrMMcdpSPd?3nw|SosQy-A1Zb{WE)w9}B_`RNnq_Bqdk{W2SU#"
    "nG+EBxwIJ~5oQA3SAU^x!pG$7K`SiCDj*AKU8Tetw?#>&D*ci21M$5-T*t%!GL<UOt@rOT&0oBWA$R1rDKAKHKVZ|f"
    "KLJ>}88UT`^^uJ**65Je&0te{=2a@1P!+|@|6PsV1J_Nbb!6AiX>NcwZZT{5D}hL-LkpAK6S1utP9Jz09D?!vJuv"
)


def test_packages_of_older_versions_are_read(tmp_path):
    (tmp_path / "old.pqd").write_bytes(base64.b85decode(GOLDEN))
    model = onnx.load_from_string(unpack_bytes(tmp_path / "old.pqd"))
    weights = numpy_helper.to_array(model.graph.initializer[0])
    assert weights.shape == (12, 8, 3, 3)
    assert weights[1, 1].tolist() == [[0, 0, 0], [-128, 127, -1], [0, 0, 0]]
    assert weights.sum(dtype=int) == 789
