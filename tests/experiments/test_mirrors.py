import numpy as np

from data_pipeline.phantom.write import make_phantoms
from experiments import mirrors
from tests.data_pipeline.cases import write_case


def test_mirrored_files_of_a_phantom_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mirrors, "PARTS", (("t1ce", "flair"),))
    make_phantoms(tmp_path, 1, 0, 2.0, 1, progress=False)
    assert mirrors.main([str(tmp_path)]) == 0
    title, _, *lines, moved = capsys.readouterr().out.splitlines()
    assert title == "1 cases; suspected as they are: 0 of 22 sets of their files"
    assert moved.endswith("4 mm 0 of 8, 0 of 16; 6 mm 0 of 8, 0 of 16")
    found = {line[:20].strip(): line[20:].split() for line in lines}
    assert {row: columns[2::3] for row, columns in found.items()} == {
        "label of 2 and label": ["1", "6", "1", "6"],
        "image of 2 and label": ["2", "12", "2", "12"],
        "image of 2": ["2", "12", "2", "12"],
    }
    assert all(columns[0::3] == columns[2::3] for columns in found.values())


def test_cases_without_a_label_cannot_be_used(tmp_path, capsys):
    write_case(tmp_path, rng=np.random.default_rng(0), label=False)
    assert mirrors.main([str(tmp_path)]) == 2
    assert "no case has a label and two modalities" in capsys.readouterr().err
