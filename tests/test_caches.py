import os

import pytest

from fastbp.codegen import caches


def test_size():
    assert 2**16 <= caches.L2_BYTES <= 2**28


@pytest.mark.parametrize("answer", [0, -1, OSError("unknown"), ValueError("no such name"), None])
def test_without_sysconf_the_kernel_is_asked(answer, tmp_path, monkeypatch):
    def sysconf(name):
        if isinstance(answer, Exception):
            raise answer
        return answer

    if answer is None:
        monkeypatch.delattr(os, "sysconf", raising=False)
    else:
        monkeypatch.setattr(os, "sysconf", sysconf, raising=False)
    monkeypatch.setattr(caches, "_SYSFS", tmp_path)
    assert caches.l2_size() == 512 * 2**10  # nobody knows
    for index, (kind, level, size) in enumerate(
        [("Data", 1, "48K"), ("Instruction", 1, "64K"), ("Unified", 2, "2048K"), ("Unified", 3, "32M")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("type", kind), ("level", level), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    assert caches.l2_size() == 2**21
