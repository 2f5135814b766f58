import pytest

from data_pipeline.errors import InputError
from kd_jax.config.options import ensure_writable


def test_trying_to_write_leaves_no_trace(tmp_path):
    ensure_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    ensure_writable(tmp_path / "there")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_file_in_the_way_is_not_writable(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="cannot be written") as error:
        ensure_writable(file)
    assert str(error.value).startswith(f"{file}: ") and list(tmp_path.iterdir()) == [file]
