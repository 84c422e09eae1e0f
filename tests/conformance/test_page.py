"""`docs/layers.md` says what the table says."""

from conformance import page
from conformance.rows import File, No, Row
from keras import layers as kl


def test_the_page_is_made_from_the_table():
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "run `PYTHONPATH=tests python -m conformance.page`"


def test_a_line_of_the_page():
    row = Row(
        (kl.Conv3D,),
        (),
        ("kernel",),
        channels=No("it mixes"),
        int8=File("ADD*2 CONV_3D", "no 3-D"),
        int16x8=No("no 3-D"),
        note="slow",
    )
    assert page.line_of(row) == (
        "| Conv3D | kernel | no | float: ADD x 2, CONV_3D | no | channels: it mixes; int8, int16x8: no 3-D; slow |"
    )
