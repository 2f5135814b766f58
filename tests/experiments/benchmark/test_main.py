import json
import sys
from types import ModuleType

import pytest

from data_pipeline.errors import InputError
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import machine, picture
from experiments.benchmark.figures import Figure, Part

MACHINE = {"system": "", "cpu": "a CPU", "cores": 2, "memory_gb": 8, "platform": "cpu", "devices": ["cpu"], "load": 0}


@pytest.fixture
def parts(monkeypatch):
    """Replaces the parts by functions of the options."""
    monkeypatch.setattr(machine, "describe", lambda: MACHINE)

    def replace(**measures):
        monkeypatch.setattr(benchmark, "PARTS", dict.fromkeys(measures, "a part"))
        for name, measure in measures.items():
            module = ModuleType(name)
            module.measure = measure
            monkeypatch.setitem(sys.modules, f"experiments.benchmark.{name}", module)

    return replace


def good(options):
    figures = [Figure("work", "s", 1.5, {"them": 3.0}, 2.0), Figure("memory", "GB", 2.0, {"them": 1.0}, 0.5)]
    return Part("good", figures, [f"seed {options.seed}"])


def failing(options):
    raise ValueError("[no] luck")


def lacking(options):
    raise ModuleNotFoundError("No module named 'them'", name="them")


def stopped(options):
    raise KeyboardInterrupt


def test_measured_skipped_and_failed_parts_are_kept_apart_and_the_status_tells(parts, tmp_path, capsys):
    parts(failing=failing, lacking=lacking, good=good)
    path = tmp_path / "new" / "found.json"
    assert benchmark.main(["--json", str(path), "--seed", "7", "--rounds", "3"]) == 1
    found = json.loads(path.read_text())
    assert found["options"] == {"rounds": 3, "small": False, "seed": 7}
    assert found["machine"] == MACHINE
    assert found["versions"]["numpy"] is not None
    assert found["parts"].keys() == {"good"}
    assert found["parts"]["good"]["ratio"] == 2
    assert [figure["ratio"] for figure in found["parts"]["good"]["figures"]] == [2, 0.5]
    assert found["parts"]["good"]["notes"] == ["seed 7"]
    assert found["skipped"] == {"lacking": "them not installed"}
    assert found["failed"] == {"failing": "ValueError: [no] luck"}
    printed = capsys.readouterr().out
    assert "them 3 s" in printed
    assert "FAILED: [no] luck" in printed
    assert "lacking skipped: them not installed" in printed


def test_an_interruption_loses_nothing_that_was_measured(parts, tmp_path):
    parts(good=good, stopped=stopped, never=failing)
    path = tmp_path / "found.json"
    assert benchmark.main(["--json", str(path)]) == 130
    found = json.loads(path.read_text())
    assert found["parts"].keys() == {"good"}
    assert not found["failed"]


def test_only_the_parts_asked_for_run_and_all_is_well(parts):
    parts(failing=failing, good=good)
    assert benchmark.main(["good"]) == 0


def test_a_busy_machine_is_told(parts, monkeypatch, capsys):
    parts(good=good)
    monkeypatch.setattr(machine, "describe", lambda: {**MACHINE, "load": 1.5})
    benchmark.main([])
    assert "other programs keep 1.5 of 2 cores busy" in capsys.readouterr().out


def test_a_part_without_what_it_measures_is_skipped(parts, monkeypatch, tmp_path):
    parts(good=good)
    monkeypatch.setattr(benchmark, "NEEDED", {"good": {"no_such_module": "no-such-package"}})
    path = tmp_path / "found.json"
    assert benchmark.main(["--json", str(path)]) == 0
    assert json.loads(path.read_text())["skipped"] == {"good": "no-such-package not installed"}


def test_a_module_of_ours_that_is_missing_is_a_failure(parts):
    def broken(options):
        raise ModuleNotFoundError("No module named 'kd_jax.gone'", name="kd_jax.gone")

    parts(broken=broken)
    assert benchmark.main([]) == 1


def test_an_unknown_part_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["stepp"])
    assert "no part stepp; choose from students, step, inference" in capsys.readouterr().err


def test_help_tells_every_part_and_examples(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in benchmark.PARTS)
    assert "--plot found.png" in text


@pytest.mark.parametrize("measure", [good, lacking])
def test_the_plot_is_drawn_with_and_without_ratios(parts, tmp_path, measure):
    parts(part=measure)
    path = tmp_path / "found.png"
    benchmark.main(["--plot", str(path)])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_was_found_is_drawn_again_and_the_later_report_counts(parts, tmp_path, capsys):
    earlier, later, again = (tmp_path / name for name in ("earlier.json", "later.json", "again.png"))
    parts(good=lambda options: Part("good", [Figure("work", "s", 3.0, {"them": 3.0}, 1.0)], []))
    benchmark.main(["--json", str(earlier)])
    parts(good=good)
    benchmark.main(["--json", str(later), "--plot", str(tmp_path / "found.png")])
    assert picture.main([str(earlier), str(later), "-o", str(again)]) == 0
    assert again.read_bytes() == (tmp_path / "found.png").read_bytes()
    assert picture.main([str(later), str(earlier), "-o", str(again)]) == 0
    assert again.read_bytes() != (tmp_path / "found.png").read_bytes()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"parts": {"good": {}}}', b'{"parts": {}}'])
def test_what_is_no_report_is_not_drawn(tmp_path, content):
    (tmp_path / "found.json").write_bytes(content)
    with pytest.raises(InputError, match=r"found\.json: no (report of the benchmark|part was measured)"):
        picture.main([str(tmp_path / "found.json"), "-o", str(tmp_path / "again.png")])
    assert not (tmp_path / "again.png").exists()
