"""Prompts from files."""

import pytest

from limbeck.errors import LimbeckError
from limbeck.tasks.prompt_files import read_prompts


def test_prompt_files(tmp_path, monkeypatch):
    place = tmp_path
    monkeypatch.chdir(place)
    (place / "prompts.txt").write_text("a cat\n\na cat\n  red dog \n")
    assert read_prompts("prompts.txt") == ["a cat", "a cat", "red dog"]
    (place / "list.json").write_text('["ein Schloß", "ein Schloß"]', encoding="utf-8")
    assert read_prompts(place / "list.json") == ["ein Schloß"] * 2
    for name, content, message in [
        ("empty.txt", b"\n \n", "empty.txt holds no prompts; write one per line"),
        ("latin.txt", "Schloß".encode("latin-1"), "latin.txt is not UTF-8 \\(byte 5\\); save it as UTF-8"),
        ("broken.json", b"[", "broken.json is no JSON"),
        ("mapping.json", b"{}", "holds a dict; write a list of texts"),
        ("numbers.json", b"[1]", "holds 1, which is no text"),
        ("prompts.csv", b"a", "prompts are read from FILE.txt"),
    ]:
        (place / name).write_bytes(content)
        with pytest.raises(LimbeckError, match=message):
            read_prompts(place / name)
    with pytest.raises(LimbeckError, match="absent.txt do not exist"):
        read_prompts("absent.txt")
