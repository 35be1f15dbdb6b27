"""What is looked at of a MATLAB file before scipy reads it; scipy's own examples, sound and damaged, are the oracle."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from medusa_cl.data.files import read_mat
from medusa_cl.data.mat import check_skeleton
from medusa_cl.errors import DataError

EXAMPLES = Path(scipy.io.__file__).parent / "matlab" / "tests" / "data"
FUNCTIONS = {"parabola.mat", "some_functions.mat", "sqr.mat", "testfunc_7.4_GLNX86.mat"}  # no data, and refused
VALUES: dict[str, Any] = {
    "numbers": np.arange(12.0).reshape(3, 4), "bytes": np.zeros((2, 3, 4), np.uint8), "none": np.zeros((0, 3)),
    "cell": np.array(["x", "yy"], dtype=object), "struct": {"f": 1, "g": [{"h": "t"}, {"h": "u"}]}, "text": "ü",
    "complex": np.array([[1 + 2j]]), "truth": np.array([True]), "sparse": scipy.sparse.eye(3).tocsc(),
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
def test_all_kinds_of_values_pass(tmp_path: Path, compressed: bool) -> None:
    scipy.io.savemat(tmp_path / "x.mat", VALUES, do_compression=compressed)
    check_skeleton(tmp_path / "x.mat")
    (numbers,) = read_mat(tmp_path / "x.mat", "numbers")
    assert np.array_equal(numbers, VALUES["numbers"])


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="scipy was installed without its examples")
def test_what_scipy_reads_passes_and_what_it_refuses_does_not_crash() -> None:
    seen = 0
    for path in sorted(EXAMPLES.glob("*.mat")):
        if path.read_bytes()[:8] != b"MATLAB 5" or path.name in FUNCTIONS:
            continue
        try:
            scipy.io.loadmat(path)
        except (ValueError, zlib.error):
            continue
        check_skeleton(path)
        seen += 1
    assert seen > 50


def test_a_damaged_tag_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    """Type 0 where numbers are to be ends the process in scipy 1.17."""
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, {"testNdxs": np.array([[3]], np.uint16)}, do_compression=False)
    content = bytearray(path.read_bytes())
    assert content[184] == 4  # two bytes of type 4, in the tag itself
    content[184] = 0
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x.mat cannot be read: expected numbers, but got types \[0\]"):
        read_mat(path, "testNdxs")
