import numpy as np
import pytest

from data_pipeline.phantom.data_set import make_phantoms
from experiments import alignment
from tests.data_pipeline.cases import write_case


@pytest.mark.slow
def test_changed_files_of_phantoms_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(alignment, "PARTS", (("t1ce", "flair"),))
    monkeypatch.setattr(alignment, "SHIFTS_MM", (4, 20))
    monkeypatch.setattr(alignment, "TURNS", (15,))
    make_phantoms(tmp_path, 2, 0, 2.0, 2, progress=False)
    assert alignment.main([str(tmp_path)]) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title == "2 cases; suspected unchanged: 0 of 44 sets of their files"
    split = lines.index("one file changed: noticed, suspected, of")
    found = {line[:20].strip(): line[20:].split() for line in lines[:split]}
    assert {row: columns[2::3] for row, columns in found.items()} == {
        "label of 2 and label": ["2", "12", "2", "12"],
        "image of 2 and label": ["4", "24", "4", "24"],
        "image of 2": ["4", "24", "4", "24"],
    }
    assert all(columns[0::3] == columns[2::3] for columns in found.values())
    apart = {row.strip(): numbers for row, *numbers in (line.rsplit(maxsplit=3) for line in lines[split + 1 :])}
    assert apart["4 mm, of 2"] == ["24", "24", "24"]
    assert apart["20 mm, of 2"] == ["0", "24", "24"]  # as images that have little in common
    assert apart["label  4 mm, of 2"][1:] == ["12", "12"]
    assert apart["15 degrees, of 2"][1:] == ["12", "12"]
    assert apart["another patient's, of 2"] == ["4", "4", "4"]


def test_cases_without_a_label_cannot_be_used(tmp_path, capsys):
    write_case(tmp_path, rng=np.random.default_rng(0), label=False)
    assert alignment.main([str(tmp_path)]) == 2
    assert "no case has a label and two modalities" in capsys.readouterr().err
