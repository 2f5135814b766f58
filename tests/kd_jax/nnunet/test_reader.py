import pickle
import zipfile

import numpy as np
import pytest

from data_pipeline.errors import InputError
from kd_jax.nnunet.archive import open_archive
from kd_jax.nnunet.reader import read_checkpoint
from tests.kd_jax.torch_archive import Call, Named, Tensor, save, tensor


def _content(**changes):
    content = {
        "network_weights": {"a": tensor(np.arange(6, dtype=np.float32).reshape(2, 3))},
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": Call(Named("torch", "device"), ("cuda", 0))},
        "current_epoch": 1000,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    return {**content, **changes}


def _arrays(path):
    with open_archive(path) as archive:
        return {name: archive.array(value) for name, value in archive.content.items()}


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_of_nnunet_is_read(tmp_path, protocol):
    checkpoint = read_checkpoint(save(tmp_path / "checkpoint_final.pth", _content(), protocol=protocol))
    np.testing.assert_array_equal(checkpoint.weights["a"], [[0, 1, 2], [3, 4, 5]])
    found = checkpoint.trainer, checkpoint.configuration, checkpoint.fold, checkpoint.epoch, checkpoint.mirror_axes
    assert found == ("nnUNetTrainer", "3d_fullres", 0, 1000, (0, 1, 2))


def test_offsets_strides_and_types_are_honoured(tmp_path):
    values = np.arange(24, dtype=np.float32)
    halves = np.array([1.5, -2, 65504], np.float16)
    # bfloat16 is the upper half of a float32.
    brain = (np.array([1.0, -3.5, 1e30], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    content = {
        "transposed": Tensor(values, 0, (3, 2), (1, 3)),
        "every other": Tensor(values, 5, (4,), (2,)),
        "half": tensor(halves),
        "bfloat16": Tensor(brain, 0, (3,), (1,), kind="BFloat16Storage"),
        "scalar": tensor(np.array(7)),
        "empty": Tensor(values, 3, (0, 4), (4, 1)),
        "double": tensor(np.array([[1e-300]])),
    }
    found = _arrays(save(tmp_path / "x.pth", content))
    np.testing.assert_array_equal(found["transposed"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["every other"], [5, 7, 9, 11])
    np.testing.assert_array_equal(found["half"], halves)
    np.testing.assert_allclose(found["bfloat16"], [1.0, -3.5, 1e30], rtol=0.01)
    assert found["scalar"].shape == () and found["scalar"] == 7
    assert found["empty"].shape == (0, 4)
    assert found["double"].dtype == np.float64 and found["double"] == 1e-300


def test_big_endian_values_are_turned(tmp_path):
    values = np.array([1.0, 2.5], ">f4")
    content = {"a": Tensor(values, 0, (2,), (1,), kind="FloatStorage")}
    found = _arrays(save(tmp_path / "x.pth", content, extra={"byteorder": b"big"}))
    np.testing.assert_array_equal(found["a"], [1.0, 2.5])


def test_the_log_s_numpy_numbers_are_passed_over(tmp_path):
    dtype = Call(Named("numpy", "dtype"), ("f8", False, True), state=(3, "<", None, None, None, -1, -1, 0))
    raw = Call(Named("_codecs", "encode"), ("\0" * 8, "latin1"))
    number = Call(Named("numpy._core.multiarray", "scalar"), (dtype, raw))
    array = Call(
        Named("numpy.core.multiarray", "_reconstruct"), (Named("numpy", "ndarray"), (0,), raw), state=(1, (0,))
    )
    content = _content(_best_ema=number, logging={"mean_fg_dice": [number, array]})
    assert read_checkpoint(save(tmp_path / "x.pth", content)).trainer == "nnUNetTrainer"


EVIL = {
    "os.system": (Named("os", "system"), ("touch {mark}",)),
    "builtins.eval": (Named("builtins", "eval"), ("open({mark!r}, 'w')",)),
    "builtins.getattr": (Named("builtins", "getattr"), ("x", "y")),
    "numpy.testing._private.utils.runstring": (
        Named("numpy.testing._private.utils", "runstring"),
        ("open({mark!r}, 'w')", {}),
    ),
    "numpy.load": (Named("numpy", "load"), ("{mark}",)),
    "torch.serialization.load": (Named("torch.serialization", "load"), ("{mark}",)),
    "torch._utils._rebuild_tensor_v2.__globals__": (Named("torch._utils", "_rebuild_tensor_v2.__globals__"), ()),
    "collections.OrderedDict.fromkeys": (Named("collections", "OrderedDict.fromkeys"), ()),
    "copyreg.__newobj__": (Named("copyreg", "__newobj__"), ()),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", EVIL)
def test_what_is_not_data_is_refused_by_name_and_not_run(tmp_path, name, protocol):
    mark = tmp_path / "was-run"
    function, arguments = EVIL[name]
    arguments = tuple(a.format(mark=str(mark)) if isinstance(a, str) else a for a in arguments)
    path = save(tmp_path / "x.pth", _content(logging=Call(function, arguments)), protocol=protocol)
    with pytest.raises(InputError, match="is not data; nothing of it was run") as error:
        read_checkpoint(path)
    assert f"contains {name}," in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        pickle.MARK + b"Vtouch {mark}\n" + pickle.INST + b"os\nsystem\n",
        pickle.MARK + pickle.GLOBAL + b"os\nsystem\n" + b"Vtouch {mark}\n" + pickle.OBJ,
        pickle.GLOBAL + b"os\nsystem\n" + b"(Vtouch {mark}\nt" + pickle.NEWOBJ,
    ],
    ids=["INST", "OBJ", "NEWOBJ"],
)
def test_other_opcodes_do_not_run_anything_either(tmp_path, opcodes):
    mark = tmp_path / "was-run"
    data = pickle.PROTO + b"\x02" + opcodes.replace(b"{mark}", str(mark).encode()) + pickle.STOP
    path = save(tmp_path / "x.pth", {}, extra={"data.pkl": data})
    with pytest.raises(InputError, match=r"contains os\.system"):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize("state", [{"_make": 1}, (None, {"_make": 1})], ids=["dict", "slots"])
def test_a_stand_in_cannot_be_altered(tmp_path, state):
    name = pickle.GLOBAL + b"torch._utils\n_rebuild_parameter\n"
    data = pickle.PROTO + b"\x02" + name + _plain(state) + pickle.BUILD + pickle.STOP
    with pytest.raises(InputError, match="sets the state of a function"):
        read_checkpoint(save(tmp_path / "x.pth", {}, extra={"data.pkl": data}))


def _plain(value) -> bytes:
    """The opcodes that make a plain value, without the header and the end."""
    return pickle.dumps(value, 2)[2:-1]


def test_a_storage_is_only_what_pytorch_describes(tmp_path):
    data = pickle.PROTO + b"\x02" + _plain(("module", "x")) + pickle.BINPERSID + pickle.STOP
    with pytest.raises(InputError, match="describes a storage in an unknown way"):
        read_checkpoint(save(tmp_path / "x.pth", {}, extra={"data.pkl": data}))


VALUES = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (Tensor(VALUES, 0, (5,), (1,)), "reaches beyond the 4 values"),
        (Tensor(VALUES, 3, (2,), (1,)), "reaches beyond the 4 values"),
        (Tensor(VALUES, 0, (2, 2), (1, 3)), "reaches beyond the 4 values"),
        (Tensor(VALUES, 0, (1 << 40,), (0,)), "reaches beyond the 4 values"),
        (Tensor(VALUES, -1, (2,), (1,)), "describes a tensor in an unknown way"),
        (Tensor(VALUES, 0, (2,), (-1,)), "describes a tensor in an unknown way"),
        (Tensor(VALUES, 0, (2,), (1, 1)), "describes a tensor in an unknown way"),
        (Tensor(VALUES.astype(np.float64), 0, (4,), (1,), kind="FloatStorage"), "has 32 bytes, not 4 values of f4"),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, damaged, message):
    with pytest.raises(InputError, match=message):
        read_checkpoint(save(tmp_path / "x.pth", _content(network_weights={"a": damaged})))


def test_a_file_that_was_not_copied_whole_is_named(tmp_path):
    whole = save(tmp_path / "x.pth", _content()).read_bytes()
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.pth").write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"x\.pth: .*(incomplete or damaged|no zip archive)"):
            read_checkpoint(tmp_path / "x.pth")


def test_every_changed_byte_is_an_error_or_harmless(tmp_path):
    path = save(tmp_path / "x.pth", _content())
    whole = path.read_bytes()
    expected = read_checkpoint(path).weights["a"]
    refused = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            np.testing.assert_array_equal(read_checkpoint(path).weights["a"], expected)
        except InputError:
            refused += 1
    assert refused > len(whole) // 28


def test_a_damaged_pickle_is_an_error_of_one_line(tmp_path):
    for data in (b"", b"\x80\x02", b"\x80\x02}q\x00(X", pickle.dumps([1])[:-1], b"\x80\x02K\x01)R.", b"\x80\x63."):
        with pytest.raises(InputError, match="its pickle cannot be read") as error:
            read_checkpoint(save(tmp_path / "x.pth", {}, extra={"data.pkl": data}))
        assert "\n" not in str(error.value)


def test_other_files_say_what_they_are(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    with pytest.raises(InputError, match=r"PyTorch before 1\.6.*save it again with torch\.save"):
        read_checkpoint(path)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="not a checkpoint of PyTorch"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")
    with pytest.raises(InputError, match=r"no data\.pkl in it"):
        read_checkpoint(path)
    with pytest.raises(InputError, match="compressed, which PyTorch does not do"):
        read_checkpoint(save(path, _content(), compress=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; expected a checkpoint of nnU-Net 2.0 to 2.8"),
        ({"state_dict": {}}, r"has no init_args \(found state_dict\)"),
        (_content(init_args={"fold": 0}), r"has no init_args\.configuration \(found fold\)"),
        (_content(trainer_name=3), "trainer_name is a int"),
        (_content(network_weights={"a": [1.0]}), "network_weights holds 'a', which is no tensor"),
    ],
)
def test_what_nnunet_did_not_write_is_refused_by_key(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_checkpoint(save(tmp_path / "x.pth", content))
