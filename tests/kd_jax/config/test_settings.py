import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from kd_jax.config.load import dump_config, load_config, parse_config
from kd_jax.config.schema import Config
from kd_jax.config.settings import config_values, in_words, settings
from kd_jax.train import parse


def _from_command_line(*arguments: str, file: Path | None = None) -> Config:
    _, given = parse(arguments)
    return load_config(file, given)


def test_no_arguments_give_the_defaults():
    assert _from_command_line() == Config()


def test_every_setting_is_reached_from_the_command_line_as_its_default_is_shown():
    arguments = [part for setting in settings() for part in (f"--{setting.key}", *in_words(setting.default).split())]
    assert _from_command_line(*arguments) == Config()


def test_every_setting_is_described():
    assert [s.key for s in settings() if not s.description] == []


def test_lists_are_given_with_spaces_or_commas_and_nested_ones_with_both():
    config = _from_command_line("--student.modalities", "flair,t1ce", "--teacher.modalities", "t1", "t2")
    assert config.student.modalities == ("flair", "t1ce") and config.teacher.modalities == ("t1", "t2")
    config = _from_command_line("--teacher.strides", "1,1,1", "2,2,2", "2,2,2", "2,2,2", "--data.root", "none")
    assert config.teacher.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert config.data.root is None


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('seed = 3\n[train]\nepochs = 7\nbatch = 4\n[student]\nmodalities = ["flair"]\n')
    config = _from_command_line("--train.epochs", "9", file=file)
    assert (config.seed, config.train.epochs, config.train.batch) == (3, 9, 4)
    assert config.student.modalities == ("flair",)
    assert config.student.features == Config().student.features


def test_a_part_of_the_student_keeps_its_default_modalities(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[student]\nfeatures = [4, 8, 16, 64]\n")
    assert load_config(file, {}).student.modalities == ("flair", "t1ce")


@given(st.integers(0, 2**31), st.floats(1e-6, 10), st.sampled_from(["ce", "dice_ce"]), st.permutations(["t1", "flair"]))
def test_a_configuration_survives_json(seed, rate, loss, modalities):
    values = {
        "seed": seed,
        "optimiser": {"learning_rate": rate},
        "loss": {"segmentation": loss},
        "student": {"modalities": modalities},
    }
    config = parse_config(values, "test")
    assert parse_config(json.loads(dump_config(config)), "test") == config
    assert config_values(config)["optimiser.learning_rate"] == rate


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dta": {}}, r"unknown key dta \(did you mean data\?\); allowed in \[top level\]: seed, data, teacher"),
        ({"data": {"rooot": "x"}}, r"unknown key data.rooot \(did you mean root\?\); allowed in \[data\]: root, "),
        ({"data": {"augmentation": {"blurr": 1}}}, r"unknown key data.augmentation.blurr \(did you mean blur\?\)"),
        ({"train": {"epochs": 0}}, "train.epochs: input should be greater than 0, found 0"),
        ({"train": {"epochs": "many"}}, "train.epochs: input should be a valid integer.*found 'many'"),
        (
            {"loss": {"segmentation": "focal"}},
            "loss.segmentation: input should be 'ce', 'dice_ce' or 'dice_bce', found 'focal'",
        ),
        ({"student": {"modalities": ["t3"]}}, "student.modalities: input should be 't1', 't1ce', 't2' or 'flair'"),
        ({"student": {"modalities": ["t1", "t1"]}}, "student: modalities .* name one twice"),
        ({"optimiser": {"learning_rate": float("nan")}}, "optimiser.learning_rate: input should be a finite number"),
        ({"data": {"fold": 5}}, r"data.fold is 5; allowed: 0 to 4"),
        (
            {"data": {"patch": [40, 40, 42]}},
            r"data.patch \(40, 40, 42\) does not fit the teacher.*multiple.*\(8, 8, 8\)",
        ),
        ({"teacher": {"kernels": [[2, 3, 3]] * 4}}, "teacher: kernels hold .*must be odd"),
        ({"teacher": {"strides": [[1, 1, 1]]}}, "teacher: strides has 1 stages, features has 4"),
        ({"distillation": {"update": "alternating", "stop_gradient": False}}, "allowed only with stop_gradient = true"),
        (
            {"data": {"augmentation": {"mirror": 1.5}}},
            "augmentation.mirror is 1.5, but it is a probability: use 0 to 1",
        ),
        ({"data": {"foreground": 2}}, "data.foreground: input should be less than or equal to 1, found 2"),
    ],
)
def test_unknown_keys_and_impossible_values_are_refused_by_name(values, message):
    with pytest.raises(InputError, match=message):
        parse_config(values, "my.toml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.rooot", "x"], r"unknown option: --data.rooot. Did you mean --data.root\?"),
        (["--train.epocs=3"], r"unknown option: --train.epocs. Did you mean --train.epochs\?"),
        (["--student.modality", "t1"], r"unknown option: --student.modality. Did you mean --student.modalities\?"),
        (
            ["--distillation.wieght", "0"],
            r"unknown option: --distillation.wieght. Did you mean --distillation.weight\?",
        ),
        (["--zzz"], "unknown option: --zzz. `kd-jax train --help` lists all options"),
        (["stray"], "unexpected argument stray"),
        (["--seed"], "--seed requires an argument"),
        (["--data", "x"], "--data: it is a table of settings; give one of them, such as --data.root"),
    ],
)
def test_unknown_options_are_refused_with_what_was_meant(arguments, message):
    with pytest.raises(InputError, match=message):
        parse(arguments)


def test_names_have_underscores_or_hyphens_and_the_later_of_two_counts():
    config = _from_command_line("--data.skip-bad", "true", "--data.augmentation.noise-sigma", "0", "0.5", "--fold", "3")
    assert config.data.skip_bad and config.data.augmentation.noise_sigma == (0, 0.5) and config.data.fold == 3
    config = _from_command_line("--student.features", "2", "4", "--student.features=4,8,16,64", "--fold=1", "--fold=2")
    assert config.student.features == (4, 8, 16, 64) and config.data.fold == 2


def test_settings_of_a_term_are_laid_over_those_of_the_file(tmp_path):
    given = ["--distillation.barlow_twins.off-diagonal", "0.01", "--distillation.barlow_twins.projector", "64", "32"]
    given += ["--distillation.my_package.my_term.weight", "2", "--distillation.my_package.my_term.kind", "soft"]
    table = {"off_diagonal": 0.01, "projector": (64, 32)}
    mine = {"weight": 2, "kind": "soft"}
    assert _from_command_line(*given).distillation.terms == {"barlow_twins": table, "my_package.my_term": mine}
    paper = load_config(Path("paper"), {}).distillation.terms["barlow_twins"]
    (tmp_path / "config.json").write_text(dump_config(load_config(Path("paper"), {})))
    for file in (Path("paper"), tmp_path / "config.json"):  # with a table of the term's own, and inside `terms`
        terms = _from_command_line(*given, file=file).distillation.terms
        assert terms == {"barlow_twins": {**paper, **table}, "my_package.my_term": mine}


def test_settings_of_one_of_several_students_are_laid_over_those_of_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[students.one]\nmodalities = ["t1"]\n[students.two]\nmodalities = ["t2"]\n')
    given = ["--students.two.features", "4", "8", "16", "64", "--students.two.distillation.weight", "0"]
    config = _from_command_line(*given, file=file)
    assert (config.students["two"].modalities, config.students["two"].features) == (("t2",), (4, 8, 16, 64))
    assert config.distillation_of("two").weight == 0 and config.distillation_of("one").weight > 0
    with pytest.raises(InputError, match=r"run.toml: students.tow: no such student; it has one, two; define it as a"):
        _from_command_line("--students.tow.seed", "3", file=file)
    with pytest.raises(InputError, match=r"unknown option: --students.two.sede. Did you mean --students.two.seed\?"):
        parse(["--students.two.sede", "3"])
    with pytest.raises(InputError, match=r"students.two.seed: input should be a valid integer.*found 'many'"):
        _from_command_line("--students.two.seed", "many", file=file)


@pytest.mark.parametrize("table", ["distillation", "student.distillation"])
def test_the_two_forms_of_the_table_of_a_term_and_a_dotted_key_are_one_table(tmp_path, table):
    file = tmp_path / "run.toml"
    file.write_text(
        f'[{table}.terms.barlow_twins]\nsamples = "cases"\n[{table}.barlow_twins]\noff_diagonal = 0.1\n'
        f'[{table}."my/term.py"]\nweight = 2\n'
    )
    config = load_config(file, {f"{table}.barlow_twins.weight": 3, f"{table}.terms.my/term.py.weight": 4})
    assert config.distillation_of("student").terms == {
        "barlow_twins": {"samples": "cases", "off_diagonal": 0.1, "weight": 3},
        "my/term.py": {"weight": 4},
    }


def test_a_dotted_key_makes_no_student(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[students.small]\n")
    assert load_config(file, {"students.small.seed": 1}).students["small"].seed == 1
    with pytest.raises(InputError, match=r"students.smal: no such student; it has small"):
        load_config(file, {"students.smal.seed": 1})


@pytest.mark.parametrize(("text", "given"), [("data = 3", "--fold"), ("students = 3", "--students.a.seed")])
def test_a_value_where_a_table_belongs_is_refused(tmp_path, text, given):
    file = tmp_path / "run.toml"
    file.write_text(text)
    name = text.partition(" ")[0]
    with pytest.raises(InputError, match=rf"run.toml: {name}: expected a table of settings, found 3"):
        _from_command_line(given, "1", file=file)


def test_a_plan_is_not_laid_over_a_value_where_a_table_belongs(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("teacher = 3")
    with pytest.raises(InputError, match=r"run.toml: teacher: expected a table of settings, found 3"):
        load_config(file, layers=[{"teacher": {"features": [4, 8]}}])


def test_all_problems_are_named_at_once_with_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[train]\nepochs = -1\nbatch = 0\n")
    with pytest.raises(InputError) as error:
        load_config(file, {})
    assert str(file) in str(error.value)
    assert "train.epochs" in str(error.value) and "train.batch" in str(error.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.toml: no such configuration file"):
        load_config(tmp_path / "missing.toml", {})
    broken = tmp_path / "broken.toml"
    broken.write_text("[train\n")
    with pytest.raises(InputError, match=r"broken\.toml: not a readable \.toml file"):
        load_config(broken, {})


def test_a_preset_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nnunet").mkdir()  # a folder is no configuration
    paper, nnunet = load_config(Path("paper"), {}), load_config(Path("nnunet"), {"train.batch": 4})
    assert (paper.loss.segmentation, nnunet.loss.segmentation, nnunet.train.batch) == ("ce", "dice_ce", 4)
    assert paper.distillation.terms["barlow_twins"]["samples"] == "voxels"
    Path("paper").write_text("[train]\nepochs = 3\n")
    assert load_config(Path("paper"), {}).train.epochs == 3  # a file goes before a preset


@pytest.mark.parametrize("name", ["papr", "elsewhere/paper", "paper.toml"])
def test_an_unknown_preset_is_answered_with_the_known_ones(name):
    with pytest.raises(InputError, match=f"{name}: no such configuration file or preset; .* path .* nnunet, paper"):
        load_config(Path(name), {})
