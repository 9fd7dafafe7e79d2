"""Tables that the commands print."""

from detcurate.cli.common import table


def test_table_aligns_text_left_and_numbers_right():
    lines = table(("name", "count", "share"), [("car", 1234, "9.5%"), ("2024", 7, "100.0%")])
    assert lines == [
        "name  count   share",
        "----  -----  ------",
        "car   1,234    9.5%",
        "2024      7  100.0%",
    ]
    assert table(("a", "bc"), []) == ["a  bc", "-  --"]
