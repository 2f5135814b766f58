"""Segments a patient with a trained run, and compares the result with a label if there is one.

python docs/examples/segment_patient.py runs/paper tumour.nii.gz t1ce=T1CE.nii.gz flair=FLAIR.nii.gz label=LABEL.nii.gz
"""

import sys

import nibabel as nib
import numpy as np

import kd_jax

BRATS_2018 = {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}  # label values of 2017 to 2021 in each region

run, output, *given = sys.argv[1:]
files = dict(pair.split("=", 1) for pair in given)
label = files.pop("label", None)

student = kd_jax.load(run)
result = student.segment(files)
for finding in result.findings:
    print(finding)
for region, volume in result.volumes_ml.items():
    print(f"{region}: {volume:.1f} ml")

if label is not None:
    truth = np.asanyarray(nib.load(label).dataobj)
    for part, values in BRATS_2018.items():
        print(f"{part}: Dice {kd_jax.dice(result.mask(part), np.isin(truth, values)):.3f}")

result.save(output, convention="brats2018")
