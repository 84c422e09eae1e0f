"""Tables and numbers as text, Markdown and HTML."""

from tfopt.core.reporting.render import Table, as_html, as_markdown, as_text, count, decimal, percent

HOSTILE = "<script>alert(1)<b> & $x_1$ | 'q'"


def test_numbers():
    assert [count(1234567), count(0), count(None)] == ["1,234,567", "0", "-"]
    assert [percent(0.805), percent(0.0), percent(None)] == ["80.5 %", "0.0 %", "-"]
    assert [decimal(0.97301), decimal(1234.5, 1), decimal(None)] == ["0.9730", "1,234.5", "-"]


def test_text_is_aligned():
    table = Table("Numbers", ("name", "n"), (("a", "1"), ("long name", "1,000")), ("total", "1,001"), ("A note.",))
    assert as_text(table).splitlines() == [
        "Numbers",
        "name           n",
        "---------  -----",
        "a              1",
        "long name  1,000",
        "---------  -----",
        "total      1,001",
        "A note.",
    ]


def test_markdown():
    table = Table("Numbers", ("name", "n"), (("a|b <i>", "1"),), notes=("A note.",))
    assert as_markdown(table).splitlines() == [
        "**Numbers**",
        "",
        "| name | n |",
        "| --- | ---: |",
        "| a&#124;b &lt;i&gt; | 1 |",
        "",
        "- A note.",
    ]


def test_html_escapes():
    text = as_html(Table(HOSTILE, (HOSTILE,), ((HOSTILE,),), (HOSTILE,), (HOSTILE,)))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 5
