"""What each option takes, refused by its name while the command line is read: status 2, before anything runs."""

import pytest

from multilevel_sde import cli

LEAST = {  # option: the least whole number it takes
    "demo": {"--images": 1, "--steps": 2, "--threads": 1},
    "sample": {"--count": 1, "--steps": 1, "--fine": 1, "--batch": 1, "--shard": 1, "--pages": 0, "--threads": 1},
    "plan": {"--samples": 8, "--steps": 2},
    "pilot": {"--samples": 2, "--steps": 2, "--candidates": 2},
    "measure": {"--images": 1, "--draws": 1, "--batch": 1},
    "train": {"--size": 4, "--halvings": 0, "--steps": 1, "--batch": 1},
    "edit": {"--images": 1, "--steps": 1, "--corrections": 1, "--tile": 1, "--margin": 0},
    "rates": {"--samples": 2},
}
POSITIVE = {
    "demo": ["--budgets"],
    "sample": ["--budget", "--timeout"],
    "plan": ["--budget", "--target-mse"],
    "train": ["--learning-rate"],
    "edit": ["--area", "--middle"],
    "rates": ["--gamma"],
}
NEEDED = {"sample": ["--ladder", "digits"], "plan": ["--ladder", "digits", "-o", "x"], "pilot": ["--ladder", "digits"],
          "measure": ["--ladder", "digits"], "train": ["--data", "digits", "--out", "x"]}  # fmt: skip
FOLDERS = ["demo", "sample", "pilot", "measure", "train", "quality", "edit", "rates"]


def refusal(capsys, command, *words):
    """What argparse says last, in an empty folder that stays empty."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, *NEEDED.get(command, []), *words])
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix(f"multilevel-sde {command}: error: argument ")


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    yield
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("command", "option", "least"), [(command, *item) for command, items in LEAST.items() for item in items.items()]
)
@pytest.mark.parametrize("text", ["one less", "-3", "1.5", "nan", ""])
def test_whole_numbers(command, option, least, text, capsys):
    text = str(least - 1) if text == "one less" else text
    said = refusal(capsys, command, f"{option}={text}")
    assert said.startswith(f"{option}: must be a whole number of at least {least}")
    assert said.endswith(f", got {text!r}")


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, options in POSITIVE.items() for option in options]
)
@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e400", "x"])
def test_numbers(command, option, text, capsys):
    said = refusal(capsys, command, f"{option}={text}")
    assert said.startswith(f"{option}: must be a finite number above 0")
    assert said.endswith(f", got {text!r}")


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("pilot", ["--samples", "0"], "--samples: must be a whole number of at least 2 (better 32), got '0'"),
        ("plan", ["--fit", "--samples", "4"], "--samples: must be a whole number of at least 8 (better 32), got '4'"),
        ("edit", ["--area", "0.6"], "--area: must be a finite number above 0 and at most 0.5, got '0.6'"),
        ("sample", ["--guidance", "nan"], "--guidance: must be a finite number, got 'nan'"),
        ("rates", ["--diffusion", "-2"], "--diffusion: must be a finite number of at least 0, got '-2'"),
    ],
)
def test_the_words(command, words, message, capsys):
    assert refusal(capsys, command, *words) == message


# -- where to write ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize("below", ["", "/results"])
def test_an_out_that_is_a_file(command, below, capsys, tmp_path_factory):
    file = tmp_path_factory.mktemp("elsewhere") / "file"
    file.touch()
    said = refusal(capsys, command, "--out", f"{file}{below}")
    assert said == f"--out: must be a folder, but {str(file)!r} is a file; give another"


def test_a_usual_out_that_is_a_file(tmp_path_factory, monkeypatch, capsys):
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "demo-output").touch()
    monkeypatch.chdir(folder)
    assert refusal(capsys, "demo") == "--out: must be a folder, but 'demo-output' is a file; give another"


def test_a_plan_that_is_a_folder_or_below_a_file(capsys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "file").touch()
    said = refusal(capsys, "plan", "-o", str(folder))
    assert said == f"-o/--out: must be a file, but {str(folder)!r} is a folder; add a name to it"
    said = refusal(capsys, "plan", "-o", str(folder / "file" / "plan"))
    assert said == f"-o/--out: must be a folder, but {str(folder / 'file')!r} is a file; give another"


# -- options that do not go together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["demo", "--budgets", "0.001"],
            '"--budgets" has 0.001, expected between 1 and 100 evaluations of the largest',
        ),
        (["demo", "--budgets", "6", "1e9", "--steps", "20"], '"--budgets" has 1e+09, expected between 1 and 20 eval'),
        (["plan", "--budget", "5", "--samples", "40"], '"--samples" is 40, but belongs to --fit, which is not given'),
        (["plan", "--budget", "5", "--steps", "20"], '"--steps" is 20, but belongs to --fit, which is not given'),
        (["plan", "--budget", "5", "--fit", "--steps", "1001"], '"--steps" must be at most 1000, the finest grid, got'),
    ],
)
def test_what_does_not_fit(words, message, capsys, monkeypatch):
    monkeypatch.setattr("multilevel_diffusion.sampling.samples.sample", None)
    assert cli.main([*words, *NEEDED.get(words[0], [])]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"multilevel-sde {words[0]}: {message}")
