import pytest

from data_pipeline.errors import InputError
from kd_jax.runs.split_files import SPLIT_FILE, SplitRecord, joined_name


def test_what_is_written_is_read_back(tmp_path):
    record = SplitRecord(["/a", "/b.csv"], None, False, ["A"], ["B"], "brats2024")
    record.write(tmp_path)
    assert SplitRecord.read(tmp_path) == record


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"data_root": "/a"}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / SPLIT_FILE).write_text(text)
    with pytest.raises(InputError, match="damaged"):
        SplitRecord.read(tmp_path)


def test_results_are_called_after_all_roots(tmp_path):
    (tmp_path / "cases.csv").touch()
    assert joined_name([tmp_path, tmp_path / "cases.csv"]) == f"{tmp_path.name}+cases"
