"""Tables: the numbers, the names and the line of a mistake."""

import csv
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hopmem.model.rows import LARGEST
from hopmem.patterns import Form, Loaded, Reading, load
from tests.patterns import save
from tests.refusal import raises_refusal

FLOATS = st.floats(-LARGEST, LARGEST, width=32, allow_nan=False)


@pytest.fixture
def table(tmp_path):
    def read(text: str | bytes, suffix: str = "csv", **options) -> Loaded:
        path = tmp_path / f"table.{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load([str(path)], Reading(**options))

    return read


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_rows_are_the_same_whatever_the_delimiter_line_ends_and_byte_order_mark(table, delimiter, end, bom, last):
    text = end.join(delimiter.join(row) for row in (["1", "2.5"], ["-3e2", " 4 "])) + (end if last else "")
    loaded = table(bom + text.encode(), "csv" if delimiter == "," else "tsv")
    assert loaded.stored.tolist() == [[1.0, 2.5], [-300.0, 4.0]]
    assert loaded.form.header is None
    assert loaded.names is None


@pytest.mark.parametrize("header", ["x,y", "x,1", "1,y", '"x, the first",y'])
def test_a_first_row_with_a_word_is_the_header(table, header):
    loaded = table(f"{header}\n1,2\n3,4\n")
    assert loaded.form.header == tuple(next(csv.reader([header])))
    assert loaded.stored.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("first", ["1,2", ",2", "nan,2", "NA,2", "1,inf"])
def test_a_first_row_of_numbers_or_gaps_is_no_header(table, first):
    assert len(table(f"{first}\n3,4\n", partial=True, on_bad="skip").stored) + ("inf" in first) == 2


@pytest.mark.parametrize(("id_column", "place"), [("name", 1), ("1", 1), ("0", 0)])
def test_an_id_column_is_chosen_by_name_or_number(table, id_column, place):
    loaded = table("a,name,b\n1,7,3\n4,8,6\n", id_column=id_column)
    rows = [["1", "7", "3"], ["4", "8", "6"]]
    assert loaded.names == tuple(row[place] for row in rows)
    assert loaded.stored.tolist() == [[float(cell) for at, cell in enumerate(row) if at != place] for row in rows]
    assert loaded.form.id_column == place


def test_names_in_a_table_without_header_are_chosen_by_number(table):
    loaded = table("cat,1,2\ndog,3,4\n", id_column="0")
    assert loaded.names == ("cat", "dog")
    assert loaded.form.header is None


def test_an_unknown_id_column_is_named_beside_those_there_are(table):
    with raises_refusal(4, "'id'", "a, b"):
        table("a,b\n1,2\n", id_column="id")
    with raises_refusal(4, "'9'", "2 columns"):
        table("1,2\n", id_column="9")


def test_a_table_of_names_alone_holds_no_numbers(table):
    with raises_refusal(4, "beside the id column"):
        table("name\ncat\n", id_column="name")


def test_quoted_cells_may_hold_delimiters_and_line_breaks(table):
    loaded = table('name,"x"\n"a,\nb","1"\n', id_column="name")
    assert loaded.names == ("a,\nb",)
    assert loaded.stored.tolist() == [[1.0]]


@pytest.mark.parametrize("gap", ["", " ", "nan", "NaN", "NA", "n/a", "null", "None", "?"])
def test_a_gap_is_unknown_in_a_query_and_a_mistake_in_a_pattern(table, gap):
    loaded = table(f"x,y\n1,2\n3,{gap}\n", partial=True)
    assert loaded.known.tolist() == [[True, True], [True, False]]
    assert loaded.stored[0].tolist() == [1.0, 2.0]
    with raises_refusal(4, "finite", "table.csv, line 3"):
        table(f"x,y\n1,2\n3,{gap}\n")


def test_a_gap_in_a_pattern_is_reported_with_the_line_of_the_table(table):
    with raises_refusal(4, "table.csv, line 3"):
        table("x,y\n1,2\n3,\n")


@pytest.mark.parametrize("bad", ["5", "5,6,7", ""])
def test_a_ragged_row_is_named_by_its_line(table, bad):
    if not bad:
        assert len(table("1,2\n\n3,4\n").stored) == 2  # an empty line is no row
        return
    with raises_refusal(4, "line 3", "2 cells"):
        table(f"1,2\n3,4\n{bad}\n")


def test_a_word_among_numbers_is_named_by_line_and_column(table):
    with raises_refusal(4, "line 3, column 1", "hello"):
        table("x,y\n1,2\n3,hello\n")


def test_a_column_of_names_is_suspected_where_none_was_named(table):
    with raises_refusal(4, "line 2, column 0", "--id-column"):
        table("name,y\ncat,2\n")


def test_a_table_with_other_delimiters_is_told_which_are_expected(table):
    with raises_refusal(4, "','", "1;2"):
        table("x;y\n1;2\n")


def test_bad_rows_are_skipped_on_demand_and_the_rest_keep_their_numbers(table):
    loaded = table("x,y\n1,2\n3\n4,word\n5,6\n", on_bad="skip")
    assert loaded.stored.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert loaded.row_names == ("0", "3")
    assert [skip.name for skip in loaded.skipped] == ["line 3", "line 4"]
    with raises_refusal(4, "none of them usable"):
        table("x,y\nword,2\n", on_bad="skip")


def test_a_table_that_is_not_utf_8_is_unreadable(table):
    with raises_refusal(3, "UTF-8"):
        table("größe,y\n1,2\n".encode("latin-1"))
    with raises_refusal(3, "UTF-8"):
        table("1,2\n3,4\n".encode("utf-16"))


@pytest.mark.parametrize("text", ["", "\n\n", "x,y\n"])
def test_a_table_without_rows_is_invalid(table, text):
    with raises_refusal(4, "at least one row"):
        table(text)


@pytest.mark.parametrize(
    ("text", "line"), [('1,2\n"3,4\n', 2), ('1,2\n"3,4\n5,6\n7,8\n', 2), ('"1,2\n3,4\n', 1), ('1,2\n3,4\n"5"6,7\n', 3)]
)
def test_a_quote_that_does_not_close_is_unreadable_and_its_line_is_named(table, text, line):
    with raises_refusal(3, f"line {line}:"):
        table(text)


def test_one_column_and_one_row_are_enough(table):
    assert table("1\n2\n").stored.tolist() == [[1.0], [2.0]]
    assert table("1,2\n").stored.tolist() == [[1.0, 2.0]]
    assert table("7").stored.tolist() == [[7.0]]


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e400", "1e39"])
def test_a_number_beyond_float32_is_no_finite_number(table, cell):
    with raises_refusal(4, "table.csv"):
        table(f"1,2\n3,{cell}\n", partial=True)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), *[FLOATS] * width), min_size=1
        )
    ),
    st.sampled_from(["csv", "tsv"]),
    st.booleans(),
)
def test_names_and_numbers_survive_a_table(tmp_path_factory, rows, kind, header):
    path = tmp_path_factory.getbasetemp() / f"round.{kind}"
    names = [name.strip() for name, *_ in rows]
    array = torch.tensor([row[1:] for row in rows])
    width = array.shape[1]
    form = Form(kind, header=(*(f"x{place}" for place in range(width)), "name") if header else None, id_column=width)
    save(str(path), kind, array, form, names, None, scale=1.0, force=True)
    loaded = load([str(path)], Reading(id_column="name" if header else str(width)))
    assert loaded.names == tuple(names)
    assert torch.equal(loaded.stored, array)
    assert loaded.form == form


def test_a_number_that_equals_the_id_column_is_no_header(table):
    loaded = table("2,5,first\n3,6,second\n", id_column="2")
    assert loaded.names == ("first", "second")
    assert loaded.stored.tolist() == [[2, 5], [3, 6]]


def test_whole_numbers_are_written_in_full(tmp_path):
    array = torch.tensor([[2**31 - 1, -(2**40) - 1, 0]])
    save(str(tmp_path / "x.csv"), "csv", array, Form("csv"), ["0"], None, scale=1.0, force=False)
    assert np.loadtxt(tmp_path / "x.csv", delimiter=",", dtype=np.float64).tolist() == array[0].tolist()


def test_float64_answers_are_written_in_full(tmp_path):
    array = torch.tensor([[math.pi, 1e300]], dtype=torch.float64)
    save(str(tmp_path / "x.csv"), "csv", array, Form("npy"), ["0"], None, scale=1.0, force=False)
    assert np.loadtxt(tmp_path / "x.csv", delimiter=",").tolist() == array[0].tolist()


def test_a_saved_table_is_read_alike_by_the_csv_module(tmp_path):
    form = Form("csv", header=("name", "x"), id_column=0)
    save(str(tmp_path / "x.csv"), "csv", torch.tensor([[1.5], [2.0]]), form, ["a,b", 'c"d'], None, scale=1, force=False)
    with (tmp_path / "x.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["name", "x"], ["a,b", "1.5"], ['c"d', "2"]]


@pytest.mark.parametrize("first", ["1,2,3O", "1,2.5.1,3", "1e,2,3"])
def test_a_first_row_with_one_bad_cell_is_suspected_to_be_no_header(table, first):
    (note,) = table(f"{first}\n4,5,6\n").notes
    assert "line 1 is taken for a header" in note
    assert next(cell for cell in first.split(",") if cell not in {"1", "2", "3"}) in note


@pytest.mark.parametrize(("first", "how"), [("x,y,z", {}), ("name,y,2", {}), ("1,2,name", {"id_column": "name"})])
def test_a_header_of_words_is_not_suspected(table, first, how):
    assert table(f"{first}\n4,5,6\n", **how).notes == ()


@pytest.mark.parametrize("column", ["²", "①", "٣", "9" * 5000, "-1", "", " x", "1.0", "x\n"])
def test_a_column_that_is_neither_a_name_nor_a_number_is_not_there(table, column):
    with raises_refusal(4, "a column"):
        table("x,y\n1,2\n", id_column=column)


def test_a_column_may_be_named_by_a_digit_that_is_no_number(table):
    assert table("²,y\n1,2\n", id_column="²").names == ("1",)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_a_name_with_a_line_end_survives_a_table(tmp_path, end):
    form, names = Form("csv", header=("name", "x"), id_column=0), [f"a{end}b", "c"]
    save(str(tmp_path / "x.csv"), "csv", torch.tensor([[1.5], [2.0]]), form, names, None, scale=1, force=False)
    loaded = load([str(tmp_path / "x.csv")], Reading(id_column="name"))
    assert (loaded.names, loaded.stored.tolist()) == (tuple(names), [[1.5], [2.0]])


def test_true_and_false_are_written_as_numbers(tmp_path):
    save(str(tmp_path / "x.csv"), "csv", torch.eye(3).bool(), Form("npy"), list("abc"), None, scale=1, force=False)
    assert load([str(tmp_path / "x.csv")], Reading()).stored.tolist() == torch.eye(3).tolist()
