import json
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.preprocessing.fingerprint import Fingerprint, Intensities
from kd_jax.config.load import load_config
from kd_jax.planning.plan_file import plan_document, read_plan, write_plan
from kd_jax.planning.planner import plan_networks


@pytest.fixture
def document():
    t1 = Intensities(mean=1 / 3, median=1, std=2, min=0, max=9, percentile_00_5=0, percentile_99_5=8.5)
    data = Fingerprint(((3.6, 0.6, 0.6),) * 40, ((20, 320, 320),) * 40, 0.7, {"t1": t1})
    plan = plan_networks(data, "M", memory=16)
    return plan_document(plan, data, root="cases", preset="M", memory=16, networks=2)


@pytest.fixture
def file(document, tmp_path):
    write_plan(tmp_path / "plan.json", document)
    return tmp_path / "plan.json"


def test_the_settings_are_read_back_and_lie_over_a_configuration(document, file):
    settings = read_plan(file)
    assert settings == document["settings"]
    config = load_config(Path("nnunet"), {"train.batch": "3"}, [settings])
    assert config.data.patch == (20, 256, 256) and config.data.spacing == (3.6, 0.6, 0.6)
    assert config.teacher.encoder == config.student.encoder == "residual"
    assert config.teacher.stage_kernels[0] == (1, 3, 3) and config.student.stage_strides[1] == (1, 2, 2)
    assert config.student.modalities == ("flair", "t1ce")  # the configuration's own
    assert config.train.batch == 3 and config.train.epochs == 1000


def test_the_file_says_what_was_measured_and_why_in_short_lines(document, file):
    text = file.read_text()
    assert json.loads(text) == document
    lines = [line.strip() for line in text.splitlines()]
    assert '"patch": [20, 256, 256]' in lines and "[1, 2, 2]," in lines
    assert len(lines) < 130 and max(map(len, lines)) < 100
    assert document["data"]["foreground_intensities"]["t1"]["mean"] == 0.333333
    assert document["why"]["memory_gb"] == 16 and "nnUNetPlannerResEncM" in document["why"]["rules"]


def _edited(file: Path, change) -> Path:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["settings"]["data"].update(patch=[20, 250, 256]), "data.patch .20, 250, 256. does not fit the te"),
        (lambda c: c["settings"]["data"].update(pach=[20, 256, 256]), "unknown key data.pach .did you mean patch"),
        (lambda c: c["settings"]["student"]["strides"].pop(), "strides has 6 stages, features has 7: give one each"),
        (lambda c: c["settings"]["train"].update(batch=0), "train.batch: input should be greater than 0, found 0"),
        (lambda c: c["settings"].update(distil={}), "unknown key distil .did you mean distillation"),
        (lambda c: c.update(patch=[8, 8, 8]), "unknown key patch; allowed at the top: data, why, settings"),
        (lambda c: c.pop("settings"), "expected a plan with a table settings, found data, why; kd-jax plan"),
        (lambda c: c.update(settings=[]), "expected a plan with a table settings"),
    ],
)
def test_an_edit_that_cannot_be_is_named(file, change, said):
    with pytest.raises(InputError, match=said) as caught:
        read_plan(_edited(file, change))
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[1, 2]", b"null", b'{"settings": {"data": [}}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(InputError, match=r"plan.json: .*(not readable JSON|expected a plan).*kd-jax plan makes one"):
        read_plan(tmp_path / "plan.json")


def test_no_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent.json: cannot be read as a plan \(No such file"):
        read_plan(tmp_path / "absent.json")
    with pytest.raises(InputError, match=r"cannot be read as a plan \(Is a directory"):
        read_plan(tmp_path)
