"""NIfTI files that belong to no case are reported, so that a wrong name hides nothing."""

import pytest

from data_pipeline.check.__main__ import main
from data_pipeline.layouts.find import describe, find_cases
from data_pipeline.layouts.unused import unused_files
from tests.data_pipeline.cases import write_case
from tests.data_pipeline.layout_sets import SETS, write_set


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_suspected_in_sets_as_they_are_published(tmp_path, name):
    root = write_set(tmp_path, name)
    findings = unused_files([root], find_cases(root, SETS[name][3]))
    counts = {"upenn": 9, "ucsf": 9, "bids": 2}  # unstripped, automated labels; bias-corrected, SWI...; derivatives
    assert [finding.severity for finding in findings] == ["note"] * (name in counts)
    assert all(
        finding.found.startswith(f"NIfTI files that belong to no case: {counts[name]}, ") for finding in findings
    )


def test_an_unused_file_in_the_folder_of_a_case_that_lacks_one(tmp_path, rng):
    home = write_case(tmp_path, rng=rng)
    (home / f"{home.name}_t1ce.nii.gz").rename(home / f"{home.name}_t1_post.nii.gz")
    (finding,) = unused_files([tmp_path], find_cases(tmp_path))
    assert finding.severity == "warning"
    assert finding.found == f"{home.name} has no t1ce, but its folder also holds {home.name}_t1_post.nii.gz"
    assert describe(find_cases(tmp_path), [tmp_path])[1:] == [f"warning: {finding}"]


def test_only_files_of_the_case_count_where_several_share_a_folder(tmp_path, rng):
    for number in range(2):
        home = write_case(tmp_path, rng=rng, number=number, label=number == 0)
        for file in home.iterdir():
            file.rename(tmp_path / file.name)
        home.rmdir()
    (tmp_path / "BraTS2021_00000_segmentation.nii.gz").touch()
    (finding,) = unused_files([tmp_path], find_cases(tmp_path))
    assert finding.severity == "note" and "BraTS2021_00000_segmentation.nii.gz" in finding.found
    (tmp_path / "BraTS2021_00001_segmentation.nii.gz").touch()
    (tmp_path / "BraTS2021_000010_segmentation.nii.gz").touch()  # of another case, which the name begins with
    warning, note = unused_files([tmp_path], find_cases(tmp_path))
    assert (
        warning.found == "BraTS2021_00001 has no label, but its folder also holds BraTS2021_00001_segmentation.nii.gz"
    )
    assert note.found.startswith(
        "NIfTI files that belong to no case: 2, for example BraTS2021_00000_segmentation.nii.gz"
    )


def test_a_whole_case_under_strange_names(tmp_path, rng, capsys):
    write_case(tmp_path / "data", rng=rng)
    home = write_case(tmp_path / "data", rng=rng, number=1)
    for file in home.iterdir():
        file.rename(file.with_name(file.name.replace("_", ".")))
    (finding,) = unused_files([tmp_path / "data"], find_cases(tmp_path / "data"))
    assert finding.severity == "warning" and finding.found.startswith("no file in BraTS2021_00001 is used, although")
    assert main([str(tmp_path / "data"), "-o", str(tmp_path / "check"), "--workers", "0"]) == 0
    assert "warning: no file in BraTS2021_00001 is used" in capsys.readouterr().out
    assert "no file in BraTS2021_00001 is used" in (tmp_path / "check" / "check.html").read_text()


def test_links_are_known_by_their_own_names_and_overlapping_roots_count_once(tmp_path, rng):
    home = write_case(tmp_path / "data", rng=rng)
    store = tmp_path / "store"
    store.mkdir()
    for number, file in enumerate(sorted(home.iterdir())):
        file.rename(store / f"{number}.nii.gz")
        file.symlink_to(store / f"{number}.nii.gz")
    (home / f"{home.name}_t2.nii.gz").rename(home / f"{home.name}_t2_brain.nii.gz")
    roots = [tmp_path / "data", home]
    (finding,) = unused_files(roots, find_cases(roots[0]))
    assert finding.found == f"{home.name} has no t2, but its folder also holds {home.name}_t2_brain.nii.gz"
