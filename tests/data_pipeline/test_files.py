import json
import math
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.files import ensure_writable, write_json


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


def test_json_keeps_letters_and_has_null_where_a_number_is_undefined(tmp_path):
    content = {"größe": [1.5, math.nan, (math.inf, None)], 3: Path("a/b")}
    write_json(tmp_path / "new" / "file.json", content)
    text = (tmp_path / "new" / "file.json").read_text()
    assert json.loads(text) == {"größe": [1.5, None, [None, None]], "3": "a/b"}
    assert '"größe": [\n' in text and text.endswith("}\n")
