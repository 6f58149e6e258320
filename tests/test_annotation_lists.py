"""Annotation lists as users have them: line ends, byte order marks, broken lines, and the line each row comes from."""

import pytest

from ferid_dataset.errors import FeridError
from ferid_dataset.sources.annotation_lists import read_list


def read(tmp_path, content, delimiter=" ", **options):
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    rows, rejected = read_list(str(file), ["name", "code"], delimiter, **options)
    assert set(rows["list"].to_pylist()) <= {str(file)}
    found = [(row["name"], row["code"], row["line"]) for row in rows.to_pylist()]
    return found, [(row.path.rpartition(":")[2], row.reason) for row in rejected]


@pytest.mark.parametrize(
    "content",
    [
        b"a.jpg 1\nb.jpg 2\n",
        b"a.jpg 1\r\nb.jpg 2\r\n",
        b"a.jpg 1\rb.jpg 2",
        b"\xef\xbb\xbfa.jpg 1\nb.jpg 2",
        b"a.jpg 1\nb.jpg 2\n\n\n",
        b"a.jpg 1 \t\nb.jpg 2  ",
    ],
    ids=["unix", "windows", "old mac", "byte order mark", "blank lines at the end", "blanks at the ends"],
)
def test_line_ends_and_marks(tmp_path, content):
    assert read(tmp_path, content) == ([("a.jpg", "1", 1), ("b.jpg", "2", 2)], [])


def test_rows_know_their_line(tmp_path):
    rows, rejected = read(tmp_path, b"name,code\na,1\n\nb\nc,1,2\n\xff,3\n d , 4 \n", ",", header="name")
    assert rows == [("a", "1", 2), ("d", "4", 7)]
    assert rejected == [
        ("4", "the line has 1 fields, not 2: 'b'"),
        ("5", "the line has 3 fields, not 2: 'c,1,2'"),
        ("6", "the line is not UTF-8"),
    ]


def test_quotes_hide_no_line(tmp_path):
    rows, rejected = read(tmp_path, b'"a 1\nb 2\nc" 3\n')
    assert rows == [('"a', "1", 1), ("b", "2", 2), ('c"', "3", 3)] and rejected == []


def test_only_the_columns_that_are_kept_must_be_text(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_bytes(b"a.mp4\tanger\t\xc4\xe3\xba\xc3\tA man.\n")
    rows, rejected = read_list(str(file), ["name", "code", "zh", "en"], "\t", keep=["name", "code"])
    assert rows.select(["name", "code"]).to_pylist() == [{"name": "a.mp4", "code": "anger"}] and rejected == []


def test_a_list_of_a_million_lines_with_a_bad_one_in_a_thousand(tmp_path):
    good, bad = b"".join(b"%d.jpg 1\n" % number for number in range(999)), b"broken\n"
    rows, rejected = read(tmp_path, (good + bad) * 1000)
    assert len(rows) == 999_000 and rows[-1] == ("998.jpg", "1", 999_999)
    assert len(rejected) == 1000 and rejected[-1][0] == "1000000"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "list.txt is empty: restore it"), ("a 1\n".encode("utf-16"), "list.txt is UTF-16: save it as UTF-8")],
)
def test_lists_that_cannot_be_read(tmp_path, content, sentence):
    with pytest.raises(FeridError, match=sentence):
        read(tmp_path, content)


def test_a_missing_list(tmp_path):
    with pytest.raises(FeridError, match="nowhere.txt cannot be opened: No such file or directory; restore it"):
        read_list(str(tmp_path / "nowhere.txt"), ["name"], " ")
