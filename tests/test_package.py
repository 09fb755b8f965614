"""The package restores an ONNX file bit for bit, near the entropy floor, and trusts no input."""

import base64
import hashlib
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pqd.errors import UserError
from pqd.export import _codec_context, _codec_tables, package
from pqd.export.package import HEADER, PLACE, START, floor_bytes, pack, unpack, unpack_bytes

ROOT = Path(__file__).parents[1]


def model_bytes(*tensors):
    initializers = [numpy_helper.from_array(t, f"t{i}") for i, t in enumerate(tensors)]
    return helper.make_model(helper.make_graph([], "g", [], [], initializers)).SerializeToString()


def laplace(shape, sparsity, seed=0, scale=20.0):
    rng = np.random.default_rng(seed)
    codes = np.rint(rng.laplace(0, scale, shape)).clip(-127, 127)
    return (codes * (rng.random(shape) >= sparsity)).astype(np.int8)


def restored(folder, content):
    model, packed, back = (Path(folder, name) for name in ("m.onnx", "m.pqd", "back.onnx"))
    model.write_bytes(content)
    assert pack(model, packed) == packed.stat().st_size
    unpack(packed, back)
    return back.read_bytes() == content


@pytest.fixture
def packed(tmp_path):
    """A tiny model and its package."""
    model = tmp_path / "tiny.onnx"
    model.write_bytes(model_bytes(laplace((8, 8, 3, 3), 0.8), np.ones(3, np.float32)))
    pack(model, tmp_path / "tiny.pqd")
    return tmp_path / "tiny.pqd"


def forge(path, payload=None, **fields):
    """Rewrites header fields and payload with a checksum that fits."""
    names = ("magic", "version", "blocks", "size", "rest", "codes", "digest")
    content = path.read_bytes()
    header = dict(zip(names, HEADER.unpack_from(content), strict=True)) | fields
    start = HEADER.pack(*header.values())
    payload = content[START:] if payload is None else payload
    path.write_bytes(start + hashlib.sha256(start + payload).digest() + payload)


def forge_places(path, size, places, rest=b"", codes=b""):
    frame = zstandard.compress(b"".join(PLACE.pack(o, *s) for o, s in places) + rest)
    forge(path, frame + codes, blocks=len(places), size=size, rest=len(frame), codes=len(codes))


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
        monkeypatch.setattr(package, name, value)
    assert restored(tmp_path, content)
    blocks = HEADER.unpack_from((tmp_path / "m.pqd").read_bytes())[2]
    assert blocks == 7


def test_same_model_gives_the_same_package(tmp_path, packed):
    pack(tmp_path / "tiny.onnx", tmp_path / "again.pqd")
    assert (tmp_path / "again.pqd").read_bytes() == packed.read_bytes()


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


def test_every_truncation_and_every_damaged_byte_is_found(packed):
    content = packed.read_bytes()
    for length in range(len(content)):
        packed.write_bytes(content[:length])
        with pytest.raises(UserError):
            unpack_bytes(packed)
    for index in range(len(content)):
        packed.write_bytes(content[:index] + bytes([content[index] ^ 64]) + content[index + 1 :])
        with pytest.raises(UserError):
            unpack_bytes(packed)
    packed.write_bytes(content + b"\0")
    with pytest.raises(UserError, match="truncated or damaged"):
        unpack_bytes(packed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "has format 2; this pqd reads format 1"),
        ({"size": 2**63}, "claims to hold 9223372036854775808 bytes"),
        ({"size": 2**31 + 1}, "claims to hold"),
        ({"blocks": 65535}, "claims to have parts"),
        ({"blocks": 500}, "list of weights is truncated"),
        ({"rest": 2**64 - 1}, "claims to have parts"),
        ({"codes": 2**40}, "claims to have parts"),
        ({"rest": 10}, "zstd frame is damaged"),
        ({"codes": 3}, "no whole number of words"),
        ({"size": 1000}, "does not fit"),
        ({"digest": bytes(32)}, "does not restore the model"),
    ],
)
def test_forged_headers_are_refused(packed, fields, message):
    forge(packed, **fields)
    with pytest.raises(UserError, match=message):
        unpack_bytes(packed)


CONV = (8, 8, 3, 3)  # 576 codes


@pytest.mark.parametrize(
    ("size", "places"),
    [
        (1152, [(0, CONV), (0, CONV)]),  # overlap
        (1152, [(576, CONV), (0, CONV)]),  # backwards
        (576, [(2**63, CONV)]),  # outside
        (0, [(0, (0, 8, 3, 3))]),  # empty
        (9, [(0, (1, 1, 3, 3))]),  # too small to be worth it
        (2**24, [(0, (2**12, 2**12, 1, 1))]),  # too large a block
        (2**20, [(0, (2**17, 8, 1, 1))]),  # too many rows
        (800, [(0, (2, 4, 10, 10))]),  # too large a kernel
        (2**24, [(0, (2**32 - 1,) * 4)]),  # enormous
        (577, [(0, CONV)]),  # a byte is missing
    ],
)
def test_forged_places_are_refused(packed, size, places):
    forge_places(packed, size, places)
    with pytest.raises(UserError, match="list of weights"):
        unpack_bytes(packed)


def test_declared_sizes_allocate_nothing(packed):
    frame = bytearray(zstandard.compress(bytes(2**16)))
    assert frame[4] == 0x60  # one segment, content size in two bytes; now in eight:
    huge = bytes(frame[:4]) + b"\xe0" + struct.pack("<Q", 2**40) + bytes(frame[7:])
    assert zstandard.frame_content_size(huge) == 2**40
    forge(packed, huge, rest=len(huge), codes=0, blocks=0, size=2**24)
    tracemalloc.start()
    with pytest.raises(UserError, match="claims a size that does not fit"):
        unpack_bytes(packed)
    forge_places(packed, 2**22, [(0, (2048, 2048, 1, 1))], codes=bytes(range(256)) * 4)
    with pytest.raises(UserError):
        unpack_bytes(packed)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_a_model_of_zeros_is_padded(tmp_path):
    content = model_bytes(np.zeros(5_000_000, np.float32))
    assert restored(tmp_path, content)
    assert (tmp_path / "m.pqd").stat().st_size == -(-(len(content) - 2**24) // 1000)


def test_short_fuzzing():
    command = [sys.executable, ROOT / "benchmarks/fuzz_package.py", "--count", "150", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "150 mutants, none crashed" in done.stdout, done.stdout + done.stderr


def test_unusable_files_are_named(tmp_path, packed):
    other = tmp_path / "other"
    other.write_bytes(b"\x89PNG and so on")
    with pytest.raises(UserError, match="other: this is no pqd package"):
        unpack_bytes(other)
    with pytest.raises(UserError, match="other is no ONNX model"):
        pack(other, tmp_path / "other.pqd")
    with pytest.raises(UserError, match=r"cannot read .*absent: No such file"):
        unpack_bytes(tmp_path / "absent")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        floor_bytes(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        unpack(packed, tmp_path / "absent" / "m.onnx")
    model = onnx.load_from_string(model_bytes(np.zeros((4, 4), np.int8)))
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    other.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="external files"):
        pack(other, tmp_path / "other.pqd")
    assert not list(tmp_path.glob("*.tmp"))


def test_tables_are_the_same_on_every_machine():
    """No entry is so near a rounding tie that another machine's logarithm could turn it."""
    share = np.arange(1, 4096)
    for exact in (
        16 * np.log2(np.arange(1, len(_codec_context.LOG2))),
        16 * np.log2(share / (4096 - share)),
        _codec_tables.ZERO_PRIOR,
        _codec_tables.VALUE_PRIOR,
    ):
        assert np.abs(exact % 1 - 0.5).min() > 1e-6


GOLDEN = (
    "iBM5Q0RRF3AO!#b00000Q~&?~00000paK8@00000B>xHcOwzf>*?0UG$`+cT$g^y3zGZ-{C6dPhyB>$$ChaPC3V6*a"
    "dIjXi!{S(HnqT-HcU6^4+jk01Zq*xbD77#BAYfer0CGeR7QpLY|9=R-?{6yh9t!%=%UvSDWRn!g1jqBS)T6m7Vc&|u"
    "vEk<KCM~Xl;0)SIga7IO`2U|J|L_0gC<FkTDPEA5o6i8Sqf#pbg&j+0@MbxtR$<N$<4ZL*fUjRf(&*Sa54#NdELz-t"
    "2{A%JMM52soOqA>hyBe-2RLE$zMG__-Mi-<$<4g1Tm2Vd;nncNjJ5kg$+4K-EMK*C689+Jg5*q;X^1IqoB_w-X&mq6"
    "T1hx8XGaoc@XzBmdeRo{ZQAM-Z*w~~?c|U3*)Ma-B6X1(W;AU>n*_ZCpyfn+g!CTr%a_HVur!PqjWFCww_;N`%`xu}"
    ";G-~f7-{FrBune1U&w010X0h_4-CV9J3LRL0Z<V4PAz0r(Tqf**UMymP=7BGtv@VIFNmok$~Z;qBhBBCIqVPu51zKS"
    "TT54|V8zy}4S?DTkV=Vu&%Iq>S>&S_yFqx})#i&aXe#wEU_tOmyw{r&%`k%eSA@ICBMiiOV7Rl}5gL&nVBdM{=b{e|"
    "=n9Eh(tk<|Mp1b*szzZo1h#OnAD|we+a>j1qr>vTMl0fi&eK~8{iE5QpdM7ukG+>O8d%g^SU8~E5ws(U1Rp?|TrA@9"
    "Q@|2wL#A@fPoA%ZVGnBrdr0VBGf(gJ_$1O7(<=4*y;Ak^5GnqetN#b<HRK~H2z{>5i!G_fj;bC9%u5owrJPZi5=ntR"
    "e|^LX{Nh75l@ewkF0Y>zMOX<d4#WltA_QCMGlfoUOf8G$Jj_j$<XM?t0=@Yqj&Oon<6d38o9Gte`tK8U0(WbRCzo66"
    "If|a!V@M#fXM{=DcE_cSH(#$@q34s?lcgry?Mw*4FE#6%NLDw8e5FS6#xzG9Mr*&cDD_vXb$F{Pi@*=&Za|V4s~z;s"
    "U$;Yl{Phwpy0BTgy+|{Ps)n|$nE`#g`VXN}J<a?OGv3)(C2HNA#+JKjLhOyp>PAx1!k&PCVre=p"
)


def test_packages_of_older_versions_are_read(tmp_path):
    (tmp_path / "old.pqd").write_bytes(base64.b85decode(GOLDEN))
    model = onnx.load_from_string(unpack_bytes(tmp_path / "old.pqd"))
    weights = numpy_helper.to_array(model.graph.initializer[0])
    assert weights.shape == (12, 8, 3, 3)
    assert weights[1, 1].tolist() == [[0, 0, 0], [-128, 127, -1], [0, 0, 0]]
    assert weights.sum(dtype=int) == 789
