"""Every command of the pages about deployment is one that its program takes, and every file that it is given is there."""

import re

import pytest

from tests.deploy.files import ROOT, blocks, cohort, commands, ray

PAGES = {name: blocks((ROOT / f"docs/{name}.md").read_text(encoding="utf-8")) for name in ("images", "kubernetes", "slurm")}


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_read_by_their_programs(page):
    found = commands(PAGES[page], "cohort")
    for words in found:
        cohort(words)
    for words in commands(PAGES[page], "ray"):
        ray(words)
    assert len(found) == {"images": 1, "kubernetes": 5, "slurm": 2}[page]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_commands_are_given_are_there(page):
    named = re.findall(r"(?<![\w./])deploy/[\w./-]+", PAGES[page])
    assert named and [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(("program", "words"), [(cohort, ["train", "a", "--or-resum"]), (ray, ["start", "--haed"])])
def test_an_option_that_a_program_lacks_is_seen(program, words):
    with pytest.raises(Exception, match="No such option"):
        program(words)
