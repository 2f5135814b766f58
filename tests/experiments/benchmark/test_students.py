import pytest

from experiments.benchmark import students
from experiments.benchmark.figures import Options


@pytest.mark.slow
def test_three_runs_and_one_do_the_same_work_and_the_ratio_is_of_their_sum():
    part = students.measure(Options(rounds=1, small=True))
    (figure,) = part.figures
    assert part.name == "students"
    assert figure.ratio == pytest.approx(figure.peers["three runs"] / figure.ours, rel=1e-6)
    words = part.notes[0].split()
    together, alone = (float(words[words.index(word) - 1].rstrip(",")) for word in ("together,", "in"))
    assert together == pytest.approx(alone, abs=2e-6)
