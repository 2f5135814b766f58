import mmap
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.benchmark import scaling, scaling_network
from experiments.benchmark.figures import Options
from experiments.benchmark.scaling_loader import Loading, many_cases, memory_of_tree
from experiments.benchmark.scaling_task import make_config


def test_what_devices_exchange_by_hand():
    # Two stages of 2 and 3 features; per network of m modalities: convolutions with bias, scale and offset in three
    # blocks (encoder 27·m·2 and 27·2·3, decoder 27·4·2), the up-convolution 8·3·2 + 2, one head 2·4 + 4.
    blocks = [27 * 2 * 3 + 3 * 3, 27 * 4 * 2 + 3 * 2]
    network = [27 * m * 2 + 3 * 2 + sum(blocks) + 8 * 3 * 2 + 2 + 2 * 4 + 4 for m in (4, 2)]
    moments = 2 * 3 * 3 + 6 * 3
    assert scaling_network.exchanged_bytes(make_config((2, 3), 8, 4, 0)) == 4 * (sum(network) + moments)


def test_a_ring_of_four_sends_three_halves():
    assert scaling_network.ring_bytes(1000, 4) == 1500
    assert scaling_network.ring_bytes(1000, 1) == 0


def test_bytes_sent_are_beside_those_that_must_be(monkeypatch):
    def compiled(config, topology):
        chips = {"v5e:2x2": 4, "v5e:4x4": 16}[topology]
        assert config.train.batch == chips
        sent = 2 * scaling_network.ring_bytes(scaling_network.exchanged_bytes(config), chips)
        return SimpleNamespace(collective_bytes=sent)

    monkeypatch.setattr(scaling_network, "compile_step", compiled)
    figures, _ = scaling_network.network_part((2, 3), 8, 0)
    assert [figure.ratio for figure in figures] == pytest.approx([0.5, 0.5])


def test_linked_cases_are_cases_of_their_own_and_vanish(tmp_path):
    with many_cases(5, tmp_path) as cases:
        folders = [case.folder for case in cases]
        assert len({case.id for case in cases}) == len(set(folders)) == 5
        np.testing.assert_array_equal(cases[0].images(), cases[3].images())
        assert (cases[0].label() != cases[1].label()).any()
        assert (folders[0] / "images.npy").stat().st_ino == (folders[3] / "images.npy").stat().st_ino
    assert not any(folder.exists() for folder in folders)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")
def test_memory_grows_by_what_is_written_to():
    content = b"1" * 50_000_000
    with mmap.mmap(-1, len(content)) as fresh:  # malloc may give what it has kept of memory that was freed
        before = memory_of_tree(os.getpid())
        fresh.write(content)
        assert memory_of_tree(os.getpid()) - before == pytest.approx(len(content), rel=0.1)


def test_growth_of_memory_is_a_slope():
    found = {n: Loading(0.1, [1.0, 1.0], [int(1e8 + 5e3 * n), int(1e8 + 5e3 * n + 1e6)]) for n in (10, 100, 1000)}
    (note,) = scaling.memory_notes(found, "threads", 100)
    assert "+5.0 MB per 1,000 cases" in note and "+10.0 MB per 1,000 batches" in note
    (*_, memory) = scaling.loader_figures(found, "threads", 100)
    assert memory.ours == pytest.approx(105.5) and memory.peers == {"10 cases": pytest.approx(100.55)}


def test_of_two_runs_the_shorter_times_count():
    one, other = Loading(0.3, [1.0, 5.0, 1.0], [1, 2, 3]), Loading(0.2, [2.0, 2.0, 2.0], [4, 5, 6])
    assert scaling.faster_of(one, other) == Loading(0.2, [1.0, 5.0, 1.0], [1, 2, 3])


@pytest.mark.slow
def test_the_part_runs():
    part = scaling.measure(Options(rounds=1, small=True))
    assert part.name == "scaling" and part.ratio > 0
    # Sharding changes nothing: the losses of the same batch agree.
    (losses,) = [note for note in part.notes if note.startswith("losses")]
    values = [float(words.split()[-1]) for words in losses.split(":")[1].split(",")]
    assert len(values) == 2 and values[0] == pytest.approx(values[1], rel=1e-5)
