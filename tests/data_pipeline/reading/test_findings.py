from pathlib import Path

from data_pipeline.reading.findings import REPEATED, Finding, digest


def test_findings_survive_json():
    for finding in (
        Finding("warning", Path("/a/t1.nii"), "found", "remedy", "command"),
        Finding("note", None, "f", ""),
    ):
        assert Finding.from_json(finding.as_json()) == finding
    assert finding.without_folder() == finding
    assert Finding("note", Path("/a/t1.nii"), "f", "", "c").without_folder() == Finding("note", Path("t1.nii"), "f", "")


def test_what_many_cases_share_is_reported_once_and_the_rest_is_counted():
    cases = [f"case{number}" for number in range(REPEATED + 1)]
    thick = [(case, Finding("warning", Path(f"/d/{case}.nii"), "5 mm", "resampled")) for case in cases]
    swap = ("case3", Finding("warning", Path("/d/t2.nii"), "looks like FLAIR", "compare"))
    findings = [*thick, swap, ("case1", Finding("note", None, "no t1", ""))]
    printed = digest(findings, "warning", shown=9)
    assert printed == [
        f"warning: 5 mm; resampled (in {REPEATED + 1} cases)",
        "warning: case3: t2.nii: looks like FLAIR; compare",
    ]
    assert digest(findings, "note", shown=9) == ["note: case1: no t1"]
    assert digest(findings, "error", shown=9) == []
    assert digest(thick[1:], "warning", shown=2)[2:] == [f"warning: and {REPEATED - 2} more; kd-jax check lists all"]


def test_several_files_of_one_case_count_once():
    same = [("case", Finding("warning", Path(f"{m}.nii"), "5 mm", "")) for m in "abcdefgh"]
    assert len(digest(same, "warning", shown=99)) == len(same)
