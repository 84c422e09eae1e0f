"""Public names are those of the committed list, with the same arguments; new names are free to come."""

import json
from operator import attrgetter

import public_api
import pytest

import tfopt

RECORDED = json.loads(public_api.LIST.read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_a_public_name_has_the_arguments_on_record(name):
    """New methods are free to come, too. If a change is meant: `python tests/public_api.py` writes the list anew."""
    now, before = public_api.entry(attrgetter(name.removeprefix("tfopt."))(tfopt)), RECORDED[name]
    if before["kind"] == "class":
        now["members"] = {member: text for member, text in now["members"].items() if member in before["members"]}
    assert now == before


def test_the_search_package_counts_as_the_verb():
    assert RECORDED["tfopt.search"]["kind"] == public_api.entry(tfopt.search)["kind"] == "function"
