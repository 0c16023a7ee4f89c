"""Files as they are: what separates their fields is found where it is certain and said, or asked for."""

import json
import os
from pathlib import Path

import pytest

from consumers.files.recording import STDIN
from pipeline.app.cli import main

Out, Words = pytest.CaptureFixture[str], tuple[str, ...]
SMALL = ("--models", "popularity", "--json", "--set", "model.attention.dim=8")
ROWS = [(f"{k % 7}", f"{k % 5}", k % 5 + 1, 881_250_949 + k) for k in range(30)]
TIMED = [("user", "item", "value", "timestamp"), *ROWS]


def text(rows: list[tuple[object, ...]], delimiter: str) -> str:
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def evaluated(capsys: Out, *argv: object) -> tuple[dict[str, object], str]:
    """Return the JSON document of `evaluate`, or an empty one, and stderr."""
    code = main(["evaluate", *map(str, argv), *SMALL])
    out, err = capsys.readouterr()
    if code:
        assert (code, out, err.count("\n")) == (2, "", 1), err
    return json.loads(out) if out else {}, err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("u.data", text(ROWS, "\t"), "by tab; no header line, MovieLens: user, item, value, timestamp"),
        ("ratings.dat", text(ROWS, "::").replace("::5::8", "::4.5::8"), "by double colon; no header line"),
        ("any.tsv", text(TIMED, "\t"), "separated by tab"),
        ("any.csv", text(TIMED, ";"), "separated by semicolon"),
        ("any.txt", "\ufeff" + text(TIMED, "|"), "separated by pipe"),
        ("any.txt", text(TIMED, ","), ""),
        ("any", json.dumps({"user": "1", "item": "2", "timestamp": 881_250_949}) + "\n" * 2, ""),
    ],
)
@pytest.mark.usefixtures("logging_as_before")
def test_a_format_is_found_and_said(name: str, content: str, said: str, tmp_path: Path, capsys: Out) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    got, err = evaluated(capsys, tmp_path / name)
    assert got["learned"] == got["rows"] == (1 if name == "any" else 30)
    assert (said in err) if said else "separated" not in err
    assert err.count(f"{name}: separated") == bool(said)


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (text(ROWS, ","), ("--columns", "user,item,value,timestamp")),
        (text(ROWS, "\t"), ("--columns", "user,item,,timestamp")),
        (text(ROWS, "~"), ("--columns", "who,item,value,at", "--delimiter", "~", "--user-column", "who",
                           "--timestamp-column", "at")),
        (text(ROWS, "||"), ("--columns", "user,item,value,timestamp", "--delimiter", "||")),
        (text(TIMED, "\t"), ("--delimiter", "tab")),
        (text(TIMED, " ").replace(" 3 ", " three "), ("--delimiter", " ", "--value-column", "none")),
    ],
)  # fmt: skip
def test_options_say_what_is_not_certain(content: str, options: Words, tmp_path: Path, capsys: Out) -> None:
    (tmp_path / "events.dat").write_text(content, "utf-8")
    got, err = evaluated(capsys, tmp_path / "events.dat", *options)
    assert got["learned"] == got["rows"] == 30, err


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (text(ROWS, ","), (), "no header line; the first line is '0,0,1,881250949': name its columns"),
        (text(ROWS, ","), ("--columns", "user,item"), "--columns names 2 columns, but the first line has"),
        (text(ROWS, ","), ("--columns", "a,b,c,d"), "no column 'user', 'item', 'timestamp'; found 'a', 'b'"),
        (text(ROWS, ","), ("--columns", "a,b,a"), "--columns: 'a,b,a': expected different names"),
        (text(ROWS, ","), ("--columns", ""), "--columns: '': expected different names"),
        (text(ROWS, ","), ("--delimiter", '"'), "--delimiter: '\"': expected the text between two fields"),
        ('{"user":"a"}', ("--delimiter", ";"), "is jsonl; --delimiter and --columns are for delimited text"),
        ("some words\nand more\n", (), "unknown kind of file; expected a name that ends in .csv"),
        ("\ufeffuser,item", (), "no column 'user'"),
    ],
)
def test_an_error_is_one_line(
    content: str, options: Words, message: str, tmp_path: Path, capsys: Out
) -> None:
    name = "events.jsonl" if content.startswith("{") else "events"
    (tmp_path / name).write_text(content, "utf-16" if "\ufeff" in content else "utf-8")
    _, err = evaluated(capsys, tmp_path / name, *options)
    assert message in err or ("\ufeff" in content and "is UTF-16; expected UTF-8" in err)


def test_standard_input_and_pipes_are_files_too(capsys: Out) -> None:
    content = text(TIMED, ";").encode()
    for file in (STDIN, "/dev/fd/0"):
        read, write = os.pipe()
        os.write(write, content)
        os.close(write)
        before = os.dup(0)
        os.dup2(read, 0)
        try:
            got, err = evaluated(capsys, file)
        finally:
            os.dup2(before, 0)
            os.close(before)
            os.close(read)
        assert got["learned"] == got["rows"] == 30, err
        assert got["file"] == file


TIMES = {
    "s": lambda second: second,
    "ms": lambda second: second * 1000,
    "us": lambda second: second * 10**6,
    "ns": lambda second: second * 10**9,
    "iso": lambda second: f"1997-12-04 15:55:{second - 881_250_900:02} UTC",
}


@pytest.mark.parametrize("unit", TIMES)
@pytest.mark.parametrize("given", ["", "s", "ns", "iso"])
def test_a_wrong_unit_proposes_the_right_one(unit: str, given: str, tmp_path: Path, capsys: Out) -> None:
    rows = [(k % 3, k % 4, TIMES[unit](881_250_910 + k)) for k in range(40)]
    path = tmp_path / "events.csv"
    path.write_text(text([("user", "item", "timestamp"), *rows, (1, 2, 12)], ","), "utf-8")
    got, err = evaluated(capsys, path, *(("--time-unit", given) if given else ()))
    if given in ("", unit):
        assert (got["learned"], got["rejected"]) == (40, {"bad_time": 1})
    else:
        assert "41 of 41 rows have no plausible time" in err
        assert f"--time-unit {unit}, or leave it out" in err


def test_times_that_fit_no_unit_are_one_line(tmp_path: Path, capsys: Out) -> None:
    path = tmp_path / "events.csv"
    path.write_text(text([("user", "item", "timestamp"), *((1, 2, k) for k in range(9))], ","), "utf-8")
    _, err = evaluated(capsys, path)
    assert "9 of 9 rows have no plausible time, such as timestamp = '0'; expected times since 1980" in err
