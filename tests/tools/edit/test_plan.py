"""Which pictures the command line asks for, under which names and keys."""

import io
from pathlib import Path

import pytest

from serve_app.cli import build_parser, main
from serve_app.errors import UsageError
from serve_app.tools.edit.arguments import EditArguments
from serve_app.tools.edit.plan import Plan, make_plan


@pytest.fixture(autouse=True)
def files(user: Path) -> Path:
    """A folder with pictures and other files; their contents are their names."""
    for name in ("in/a.jpg", "in/b.PNG", "in/notes.txt", "in/.hidden.png", "in/deep/c.webp", "style.png"):
        file = user / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return user


def plan(*arguments: str) -> Plan:
    return make_plan(EditArguments.of(build_parser().parse_args(["edit", *arguments])))


def names(*arguments: str) -> list[str]:
    return [str(planned.file) for planned in plan(*arguments).pictures]


def key(*arguments: str) -> str:
    found = plan(*arguments)
    return found.request(found.pictures[0]).key


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["in"], ["a", "b"]),
        (["in/*.jpg"], ["a"]),
        (["in/**/*.webp"], ["c"]),
        (["in/b.PNG", "in"], ["b", "a"]),
        (["in/notes.txt"], ["notes"]),
    ],
)
def test_files_folders_and_patterns(inputs: list[str], expected: list[str]) -> None:
    assert names(*inputs, "--prompt", "x") == [f"edited/{name}.png" for name in expected]


def test_each_combination_of_the_camera_is_a_picture() -> None:
    poses = ["--azimuth", "45", "--azimuth", "90", "--elevation", "-30", "--distance", "0.6", "--azimuth", "45"]
    assert names("in/a.jpg", *poses) == ["edited/a-az45-el-30-d0.6.png", "edited/a-az90-el-30-d0.6.png"]


def test_an_orbit_has_its_views_and_its_animation() -> None:
    orbit = plan("in/a.jpg", "--elevation", "0", "--elevation", "30", "--animate", "gif", "--orbit")
    assert [each.pose["azimuth"] for each in orbit.pictures] == [45.0 * index for index in range(8)] * 2
    assert len({each.file for each in orbit.pictures}) == 16
    animations = [str(each.animation) for each in orbit.pictures]
    assert animations == ["edited/a-orbit-el0.gif"] * 8 + ["edited/a-orbit-el30.gif"] * 8


def test_a_pattern_names_the_files() -> None:
    pattern = "{index}_{name}_{azimuth}_{elevation}{distance}"
    assert names("in", "--azimuth", "90", "--name", pattern, "--format", "webp", "--out", "o") == [
        "o/1_a.jpg_90_.webp",
        "o/2_b.PNG_90_.webp",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", 'prompt,file\nOne,a.jpg\n"Two, and more",b.PNG\n'),
        ("list.jsonl", '{"file": "a.jpg", "prompt": "One"}\n\n{"prompt": "Two, and more", "file": "b.PNG"}\n'),
    ],
)
def test_a_list_gives_each_file_its_prompt(files: Path, name: str, text: str) -> None:
    (files / "in" / name).write_text(text, encoding="utf-8-sig")
    found = [(str(each.source.path), each.source.prompt) for each in plan("--list", f"in/{name}").pictures]
    assert found == [("in/a.jpg", "One"), ("in/b.PNG", "Two, and more")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "file,promt\na.jpg,x\n", r"list.csv:2: has file, promt; it must have file and prompt."),
        ("list.csv", "file,prompt\na.jpg\n", r"list.csv:2: file and prompt must be texts"),
        ("list.csv", "file,prompt\na.jpg,x,y\n", r"list.csv:2: has None, file, prompt"),
        ("list.csv", 'file,prompt\na.jpg,"x\n', "list.csv: not CSV: unexpected end of data"),
        ("list.csv", "file,prompt\nmissing.jpg,x\n", r"list.csv:2: missing.jpg: no such file"),
        ("list.csv", "", "the list has no pictures"),
        ("list.jsonl", '{"file": "a.jpg", "prompt": "x"}\n{', "list.jsonl:2: not JSON"),
        ("list.jsonl", "[1]", "list.jsonl:1: each line is an object"),
        ("list.jsonl", '{"file": "a.jpg", "prompt": 3}', "list.jsonl:1: file and prompt must be texts"),
        ("list.txt", "", "ends in .csv or .jsonl"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(files: Path, name: str, text: str, message: str) -> None:
    (files / "a.jpg").write_text("a")
    (files / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        plan("--list", name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No picture: name files"),
        (["in"], "in/a.jpg: nothing to do: give --prompt, or a camera option"),
        (["missing.jpg", "--prompt", "x"], "missing.jpg: no such file or folder."),
        (["*.gif", "--prompt", "x"], "*.gif: no file matches this pattern."),
        (["in", "--prompt", "x", "--list", "list.csv"], "leave out PICTURE and --prompt"),
        (["--list", "missing.csv"], "missing.csv: cannot be read"),
        (["in", "--orbit", "4", "--azimuth", "90"], "--azimuth cannot be combined with --orbit"),
        (["in", "--azimuth", "90", "--animate", "gif"], "--animate needs --orbit"),
        (["in", "--prompt", "x", "--with", "missing.jpg"], "--with missing.jpg: no such file."),
        (["in", "--prompt", "x", "--out", "in"], "in/a.jpg is in the output folder."),
        (["in", "--prompt", "x", "--name", "same"], "edited/same.png would be written for more than one picture"),
        (["in", "--orbit", "4", "--name", "{stem}"], "edited/a.png would be written for more than one picture"),
        (["in", "--prompt", "x", "--name", "{what}"], "--name {what}: 'what'. It may hold {stem}, {name}"),
        (["in", "--prompt", "x", "--name", "../{stem}"], "is not the name of a visible file"),
        (["in", "--prompt", "x", "--name", ".{stem}"], "is not the name of a visible file"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_to_change(
    arguments: list[str], message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edit", *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("camera-edit: ")
    assert message in output.err
    assert "`camera-edit edit --help` has examples." in output.err
    assert output.out == ""
    assert not (files / "edited").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--orbit", "in", "Write the pictures before --orbit."),
        ("--orbit", "9", "not a number of views from 1 to 8"),
        ("--jobs", "0", "not a whole number from 1 to 64"),
        ("--timeout", "0", "not a number above 0"),
        ("--timeout", "inf", "not a number above 0"),
        ("--azimuth", "nan", "not a finite number"),
        ("--distance", "1e400", "not a finite number"),
        ("--lora", "woodcut=nan", "is not NAME or NAME=WEIGHT, such as woodcut=0.8"),
        ("--format", "bmp", "invalid choice"),
        ("--lora", "woodcut=strong", "is not NAME or NAME=WEIGHT, such as woodcut=0.8"),
        ("--steps", "0", "not a whole number of at least 1"),
        ("--steps", "many", "not a whole number of at least 1"),
        ("--seed", "-5", "not a whole number of at least 0, or -1 for a random one"),
        ("--quality", "0", "not a whole number from 1 to 100"),
        ("--quality", "101", "not a whole number from 1 to 100"),
        ("--size", "10x", "not WIDTHxHEIGHT in pixels, such as 1024x1024"),
        ("--size", "0x64", "not WIDTHxHEIGHT in pixels, such as 1024x1024"),
    ],
)
def test_a_wrong_value_ends_with_2(option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        plan(option, value)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"argument {option}" in error
    assert message in error


@pytest.mark.parametrize(
    ("option", "value", "field", "sent"),
    [
        ("--steps", "1", "num_inference_steps", 1),
        ("--seed", "0", "seed", 0),
        ("--seed", "-1", "seed", -1),
        ("--quality", "1", "output_quality", 1),
        ("--quality", "100", "output_quality", 100),
        ("--size", "96x64", "size", "96x64"),
        ("--size", "auto", "size", "auto"),
    ],
)
def test_the_smallest_and_largest_values_are_sent(option: str, value: str, field: str, sent: object) -> None:
    assert plan("in", "--prompt", "x", option, value).fields[field] == sent


def test_a_terminal_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(UsageError, match="pipe a picture"):
        plan("-", "--prompt", "x")


def test_a_key_depends_on_what_the_picture_shows_and_on_nothing_else(files: Path) -> None:
    plain = ["in/a.jpg", "--prompt", "x"]
    base = key(*plain)
    same = [["--out", "o"], ["--name", "{index}"], ["--jobs", "1"], ["--url", "http://x"], ["--key", "k"], ["--json"]]
    assert {key(*plain, *more) for more in same} == {base}
    options = ["--azimuth 0", "--elevation 0", "--distance 1", "--seed 1", "--steps 8", "--size 64x64", "--quality 9"]
    options += ["--format webp", "--rewrite", "--with style.png", "--with in/b.PNG", "--orbit 1 --elevation 0"]
    options += ["--lora woodcut", "--lora woodcut=0.8"]
    others = [key(*plain, *option.split()) for option in options]
    others += [key("in/b.PNG", "--prompt", "x"), key("in/a.jpg", "--prompt", "y")]
    assert len({base, *others}) == 1 + len(others)
    (files / "copy.jpg").write_text("in/a.jpg")
    assert key("copy.jpg", "--prompt", "x") == base
