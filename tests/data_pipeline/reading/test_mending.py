"""The commands of findings, run as they are printed, mend the files."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from data_pipeline.reading.findings import Finding
from data_pipeline.reading.mending import regrid, strip
from data_pipeline.reading.nifti import read_image
from data_pipeline.reading.scan import inspect_case
from tests.data_pipeline.cases import SRI24, one_case, rewrite, write_nifti


def run(command: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", command], cwd=folder, check=True, env={**os.environ, "PATH": path})


def mended(folder: Path, file: Path) -> Path:
    return folder / "mended" / file.relative_to("/")


def commands(case) -> list[Finding]:
    return [finding for finding in inspect_case(case).findings if finding.command]


def with_files(case, **images):
    return replace(case, images={**case.images, **images})


def test_names_that_lie_about_compression(tmp_path, rng):
    case = one_case(tmp_path / "it's here", rng)
    zipped, plain = case.images["t1"], case.images["t2"]
    write_nifti(tmp_path / "plain.nii", np.asarray(nib.load(plain).dataobj)).rename(plain)
    zipped.rename(zipped.with_suffix(""))
    broken = with_files(case, t1=zipped.with_suffix(""))
    assert [finding.severity for finding in commands(broken)] == ["error", "error"]
    for finding in commands(broken):
        run(finding.command, tmp_path)
    mended = with_files(case, t1=zipped, t2=plain.with_suffix(""))
    assert commands(mended) == [] and inspect_case(mended).scan.images.keys() == case.images.keys()


def test_headers_that_contradict_themselves(tmp_path, rng):
    case = one_case(tmp_path, rng)
    for modality, spoil in {"t1": spoil_qform, "flair": spoil_pixdim}.items():
        spoil(case.images[modality])
    found = commands(case)
    assert [finding.file for finding in found] == [case.images["t1"], case.images["flair"]]
    before = {m: read_image(path) for m, path in case.images.items()}
    for finding in found:
        run(finding.command, tmp_path)
        mended(tmp_path, finding.file).replace(finding.file)
    assert commands(case) == []
    for m, path in case.images.items():
        np.testing.assert_array_equal(read_image(path).data, before[m].data)
        np.testing.assert_allclose(read_image(path).affine, before[m].affine, atol=1e-5)


def spoil_qform(path: Path) -> None:
    image = nib.load(path)
    image.set_qform(SRI24 @ np.diag([-1, 1, 1, 1]), 1)
    nib.save(image, path)


def spoil_pixdim(path: Path) -> None:
    image = nib.load(path)
    image.header.set_qform(None, 0)
    image.header["pixdim"][1:4] = 2
    content = bytearray(image.to_bytes())
    path.with_suffix("").write_bytes(content)
    subprocess.run(["gzip", "-f", path.with_suffix("")], check=True)


def test_a_file_of_several_volumes_is_split(tmp_path, rng):
    case = one_case(tmp_path, rng)
    path = case.images["t1"]
    rewrite(path, lambda v: np.stack([v, v + 1], axis=-1))
    (finding,) = commands(case)
    run(finding.command, tmp_path)
    first, second = (mended(tmp_path, path.with_name(path.name.replace(".nii", f"_{k}.nii"))) for k in (0, 1))
    np.testing.assert_array_equal(read_image(first).data + 1, read_image(second).data)


def test_a_file_on_another_grid_is_resampled_by_its_header(tmp_path, rng):
    case = one_case(tmp_path, rng)
    shifted = SRI24.copy()
    shifted[2, 3] = 2
    for path in (case.images["flair"], case.label):
        rewrite(path, lambda v: v[:, :, 2:], shifted)
    reference = read_image(case.images["t1"])
    kept = {path: np.asarray(nib.load(path).dataobj) for path in (case.images["flair"], case.label)}
    found = commands(case)
    assert [finding.file for finding in found] == [case.images["flair"], case.label]
    for finding in found:
        run("\n".join(line for line in finding.command.splitlines() if "flirt" not in line), tmp_path)
        image = nib.load(mended(tmp_path, finding.file))
        np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 2:], kept[finding.file])
        np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, :2], 0)
        mended(tmp_path, finding.file).replace(finding.file)
    assert commands(case) == [] and inspect_case(case).scan.reference.shape == reference.shape


def test_programs_of_others_are_called_as_they_expect(tmp_path):
    path, to = tmp_path / "a b.nii.gz", tmp_path / "t1.nii.gz"
    assert f"flirt -in '{path}' -ref {to} -dof 6 -out 'mended{path}'" in regrid(path, to, label=False)
    assert "flirt" not in regrid(path, to, label=True)
    assert strip(path).endswith(f"mri_synthstrip -i '{path}' -o 'mended{path}'")
