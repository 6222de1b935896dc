import json

import pyarrow
import pytest
from pyarrow import parquet

from rollout.config import SourceConfig
from rollout.data.rows import Row, load_rows


def written(tmp_path, data, name="train.jsonl"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def error_of(tmp_path, data, name="train.jsonl", **source):
    path = written(tmp_path, data, name)
    with pytest.raises(ValueError) as caught:
        load_rows(SourceConfig(file=path, **source))
    return str(caught.value).replace(str(tmp_path) + "/", "")


def test_rows_carry_file_and_line_and_blank_lines_are_counted(tmp_path):
    path = written(tmp_path, '\ufeff{"a": "x\u2028y"}\r\n\n{"a": 2}')
    rows = load_rows(SourceConfig(file=path))
    assert [(row.where, row.columns) for row in rows] == [(f"{path}:1", {"a": "x\u2028y"}), (f"{path}:3", {"a": 2})]


def test_rows_limits_the_rows_and_more_than_there_are_is_an_error(tmp_path):
    path = written(tmp_path, '{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    assert [row.columns["a"] for row in load_rows(SourceConfig(file=path, rows=2))] == [1, 2]
    with pytest.raises(ValueError, match="rows: 4 asked for, and there are 3"):
        load_rows(SourceConfig(file=path, rows=4))


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    written(tmp_path, "", "train.jsonl")
    with pytest.raises(ValueError, match=r"trian.jsonl: no such file; did you mean train.jsonl\?"):
        load_rows(SourceConfig(file=tmp_path / "trian.jsonl"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "train.jsonl: no rows"),
        (b"\n \n", "train.jsonl: no rows"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "train.jsonl:2:8: byte 0xff is not UTF-8"),
        (b'{"a": 1}\n{"a": 2,, }\n{"a": 3}\n', "train.jsonl:2:9: not JSON: Expecting property name"),
        (b'{"a": 1}\n{"a": "\\ud800"}\n', "train.jsonl:2:1: has half of a surrogate pair"),
        (b'{"a": 1}\n[1, 2]\n', "train.jsonl:2:1: found list; expected a JSON object"),
    ],
)
def test_a_bad_file_is_an_error_with_line_and_column(tmp_path, data, message):
    text = error_of(tmp_path, data)
    assert text.startswith(message) and "cut short" not in text


@pytest.mark.parametrize("form", ["{}\n", "[{}]"])
@pytest.mark.parametrize(
    ("value", "message"), [("1" * 5000, "value has 5000 digits"), ("[" * 10**5 + "]" * 10**5, "maximum recursion depth")]
)
def test_json_that_python_cannot_hold_is_an_error_with_its_file(tmp_path, form, value, message):
    text = error_of(tmp_path, form.replace("{}", f'{{"a": {value}}}'))
    assert text.startswith("train.jsonl:") and "cannot be read: " in text and message in text and "sys" not in text


def test_a_file_that_is_a_directory_or_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "data.jsonl").mkdir()
    with pytest.raises(ValueError, match="data.jsonl: is a directory; expected a .jsonl, .json or .parquet file"):
        load_rows(SourceConfig(file=tmp_path / "data.jsonl"))

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    assert error_of(tmp_path, "{}") == "train.jsonl: cannot be read: Permission denied"


def test_a_last_line_cut_short_is_said_to_be_so(tmp_path):
    assert error_of(tmp_path, '{"a": 1}\n{"a": "tw') == (
        "train.jsonl:2:7: not JSON: Unterminated string starting at; the last line has no end, so the file may be cut short"
    )


def test_parquet_rows_are_numbered_and_a_broken_file_is_an_error(tmp_path):
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.table({"a": [1, 2], "b": ["x", "y"]}), path)
    rows = load_rows(SourceConfig(file=path))
    assert [(row.where, row.columns) for row in rows] == [(f"{path}:1", {"a": 1, "b": "x"}), (f"{path}:2", {"a": 2, "b": "y"})]
    assert error_of(tmp_path, "hello", "bad.parquet").startswith("bad.parquet: not a readable parquet file")
    assert error_of(tmp_path, "a,b", "train.csv") == "train.csv: the ending is '.csv'; expected .jsonl, .json or .parquet"


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
def test_one_array_of_objects_is_read_with_the_lines_of_its_items(tmp_path, name):
    path = written(tmp_path, '\ufeff\n[{"a": "[,]"}, {"a": 2},\n {\n"a": 3},\n\n{"a": {"b": []}} ]\n', name)
    rows = load_rows(SourceConfig(file=path))
    assert [row.columns["a"] for row in rows] == ["[,]", 2, 3, {"b": []}]
    assert [row.where for row in rows] == [f"{path}:{line}" for line in (2, 2, 3, 6)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[]", "train.jsonl: no rows"),
        ('[{"a": 1},\n2]', "train.jsonl:2:1: found int; expected a JSON object"),
        (
            '[{"a": 1},\n{"a" 2}\n]',
            "train.jsonl:2:6: not JSON: Expecting ':' delimiter; expected an object a line, or one array",
        ),
        ('[{"a": 1},\n{"a": 2}', "train.jsonl:2:9: not JSON: Expecting ',' delimiter; the last line has no end"),
        ('[{"a": 1}]\n[{"a": 2}]\n', "train.jsonl:2:1: not JSON: Extra data; expected an object a line, or one array"),
        ('[{"a": "\\uD800"}]', "train.jsonl:1:1: has half of a surrogate pair"),
        (
            '{\n"a": 1\n}\n',
            "train.jsonl:1:2: not JSON: Expecting property name enclosed in double quotes; expected an object a line",
        ),
    ],
)
def test_a_bad_array_is_an_error_with_line_and_column(tmp_path, data, message):
    assert error_of(tmp_path, data).startswith(message)


def test_a_hub_data_set_is_asked_for_its_split(monkeypatch):
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: asked.append((name, split)) or [{"a": 1}])
    assert load_rows(SourceConfig(hub="org/set:test"))[0] == Row(where="org/set:test:1", columns={"a": 1})
    load_rows(SourceConfig(hub="org/set"))
    assert asked == [("org/set", "test"), ("org/set", "train")]


def test_a_hub_data_set_that_cannot_be_loaded_is_an_error(monkeypatch):
    def refuse(name, split):
        raise ValueError(f"Unknown split {json.dumps(split)}")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(ValueError, match='hub: org/set:tset: cannot be loaded: Unknown split "tset"'):
        load_rows(SourceConfig(hub="org/set:tset"))
