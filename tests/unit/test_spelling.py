"""Slips in dependency files, put right and read again."""

import pytest

from flops.errors import DependencyError
from flops.formats import requirements as reader
from flops.repair.rewrite import edit
from flops.repair.spelling import corrections, explained


def failure(files):
    with pytest.raises(DependencyError) as caught:
        reader.read(files)
    return caught.value


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("numpy=1.26.4", "numpy==1.26.4"),
        ("numpy = 1.26.4  # arrays", "numpy == 1.26.4  # arrays"),
        ("numpy=>1.26", "numpy>=1.26"),
        ("numpy=<1.26", "numpy<=1.26"),
        ("numpy===1.26.4", "numpy==1.26.4"),
        ("numpy 1.26.4", "numpy==1.26.4"),
        ("numpy==", "numpy"),
        ("numpy==1.26.4:", "numpy==1.26.4"),
        ("numpy==1.26..4", "numpy==1.26.4"),
        ("numpy==1.26.x", "numpy==1.26.*"),
        ("numpy>=1.20<2", "numpy>=1.20,<2"),
        ("pandas[parquet==2.2.1", "pandas[parquet]==2.2.1"),
        ("pandas]==2.2.1", "pandas==2.2.1"),
        ('"numpy==1.26.4', "numpy==1.26.4"),
        ("- numpy==1.26.4", "numpy==1.26.4"),
        ("- numpy=1.26.4", "numpy==1.26.4"),
        ("_libgcc_mutex==0.1", ""),
        ("nu~mpy==1.26.4", "numpy==1.26.4"),
        ("pi@llow==11.1.0  # images", "pillow==11.1.0  # images"),
        ("pandas==2{.2.3", "pandas==2.2.3"),
        ("pandas>==", "pandas"),
    ],
)
def test_slips_in_a_text_file(written, meant):
    files = {"requirements.txt": f"scipy==1.13.0\n{written}\ntorch\n".encode()}
    found = corrections(files, failure(files), reader.read)
    assert [(one.code, one.after, one.where) for one in found] == [("SYNTAX_CORRECTED", meant, "requirements.txt:2")]
    after = edit(files, found).files["requirements.txt"].decode()
    assert after == f"scipy==1.13.0\n{meant}{chr(10) if meant else ''}torch\n"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("dependencies\n- numpy=1.26.4\n", "dependencies:\n- numpy=1.26.4\n"),
        ("dependencies:\n-numpy=1.26.4\n- scipy\n", "dependencies:\n- numpy=1.26.4\n- scipy\n"),
        ("dependencies:\n- numpy=1.26.4\n\t- scipy\n", None),
        ("dependencies:\n- 'numpy=1.26.4\n- scipy\n", "dependencies:\n- numpy=1.26.4\n- scipy\n"),
        ("dependencies:\n  - numpy=1\n - scipy\n", "dependencies:\n  - numpy=1\n  - scipy\n"),
        ("name: x\n dependencies:\n- numpy\n", "name: x\ndependencies:\n- numpy\n"),
        ("dependencies:\n- numpy: 1.26.4\n", "dependencies:\n- numpy==1.26.4\n"),
        ("dependencies:\n- numpy=1.26.4\n- pip\n- pip:\n  - scipy=1.13\n", None),
    ],
)
def test_slips_in_a_conda_file(written, meant):
    files = {"conda.yaml": written.encode()}
    found = corrections(files, failure(files), reader.read)
    assert found
    after = {**files, **edit(files, found).files}
    names = [entry.name for entry in reader.read(after).entries]
    assert names[0] == "numpy"
    if meant is not None:
        assert after["conda.yaml"].decode() == meant


def test_several_slips_are_put_right_together():
    files = {"requirements.txt": b"numpy=1.26.4\nscipy\npandas=>2\n"}
    error = explained(failure(files), files, reader.read)
    assert [one.after for one in error.repairs] == ["numpy==1.26.4", "pandas>=2"]
    assert "-numpy=1.26.4\n+numpy==1.26.4" in error.hint
    assert [finding.hint for finding in error.findings] == ["did you mean numpy==1.26.4?", "did you mean pandas>=2?"]


@pytest.mark.parametrize("text", ["nobodysname/", "git+https://127.0.0.1/x", "numpy ?? 1", "-e .", "a==1; nonsense"])
def test_what_is_not_understood_is_left(text):
    files = {"requirements.txt": f"numpy\n{text}\n".encode()}
    assert corrections(files, failure(files), reader.read) == ()
