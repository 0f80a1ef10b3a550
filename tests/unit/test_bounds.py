"""The data file of bounds that no metadata states."""

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flops.formats import bounds


def test_each_bound_has_its_reason_and_its_proof():
    for bound in bounds.bounds():
        assert len(bound.reason) > 20
        assert bound.beside
        compile(bound.proof, bound.package, "exec")
        assert all(Requirement(text) for text in (bound.package, *bound.proof_packages))
        assert SpecifierSet(bound.specifier)
        assert SpecifierSet(bound.proof_version)


def test_a_lock_that_breaks_a_bound_is_told():
    assert [bound.package for bound in bounds.broken({"numpy": "1.26.4", "pyarrow": "26.0.0"})] == ["pyarrow"]
    assert bounds.broken({"numpy": "2.0.0", "pyarrow": "26.0.0"}) == []
    assert bounds.broken({"numpy": "1.26.4", "pyarrow": "25.0.1"}) == []
    assert bounds.broken({"pyarrow": "26.0.0"}) == []
    assert [bound.specifier for bound in bounds.broken({"numpy": "2.1.0", "torch": "2.1.1"})] == ["<2"]


def test_load_dataset_has_its_own_bounds():
    assert set(bounds.of_load_dataset()) == {"datasets"}
