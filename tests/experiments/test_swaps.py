import numpy as np

from data_pipeline.phantom.data_set import make_phantoms
from experiments import swaps
from tests.data_pipeline.cases import write_case


def test_swaps_of_a_phantom_are_counted(tmp_path, capsys):
    make_phantoms(tmp_path, 1, 0, 2.0, 1, progress=False)
    assert swaps.main([str(tmp_path)]) == 0
    title, *lines, labels = capsys.readouterr().out.splitlines()
    assert title.startswith("1 cases;") and labels == "labels of other cases noticed: 0 of 0"
    found = {name: (with_label, without) for name, with_label, without in map(str.split, lines)}
    assert len(found) == 7
    assert found["none"] == ("0", "0")
    assert found["t1/t2"] == found["t2/flair"] == ("1", "1")


def test_cases_without_all_modalities_cannot_be_used(tmp_path, capsys):
    write_case(tmp_path, rng=np.random.default_rng(0), modalities=("t1ce", "flair"))
    assert swaps.main([str(tmp_path)]) == 2
    assert "no case has all of t1, t1ce, t2, flair" in capsys.readouterr().err
