"""The project's own files agree with one another."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import limbeck
from limbeck import version
from limbeck.errors import unknown

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
REQUIREMENTS = [
    Requirement(line)
    for lines in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for line in lines
    if not line.startswith("limbeck[")
]


def test_version_is_the_one_that_the_build_reads():
    assert "version" in PROJECT["dynamic"]
    source = ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"]
    assert source == Path(version.__file__)
    assert re.findall(r'^__version__ = "(.+)"$', source.read_text(), re.MULTILINE) == [limbeck.__version__]
    assert str(Version(limbeck.__version__)) == limbeck.__version__  # PEP 440, in its normal form


def test_citation_and_changelog_name_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["license"]) == ("Limbeck", PROJECT["license"])
    assert citation["authors"] == PROJECT["authors"]
    assert citation["version"] == limbeck.__version__
    assert f"\n## [{limbeck.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_every_dependency_has_a_pin_within_its_range(requirement):
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {canonicalize_name(name): version for name, version in pins}
    assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


@pytest.mark.skipif(os.environ.get("LIMBECK_TYPECHECK") != "1", reason="set LIMBECK_TYPECHECK=1")
def test_annotations_are_checked_at_run_time():
    with pytest.raises(TypeCheckError):
        unknown("method", 1, ["dmd"])
