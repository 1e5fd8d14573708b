"""Tokens and places on a machine stay out of what is published."""

import pytest

from hf_reprot.hub.privacy import REMOVED, folder_name, holds_token, public, redact, without_paths

TOKEN = "hf_" + "Ab12" * 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ada/models/student", "student"),
        ("saved in /home/ada/models/student/ today", "saved in student today"),
        (r"C:\Users\ada\student", "student"),
        ("file:///home/ada/student", "student"),
        ("~/models/student", "student"),
        ("https://huggingface.co/ada/student", "https://huggingface.co/ada/student"),
        ("ada/student", "ada/student"),
        ("timm/resnet50.a1_in1k@main", "timm/resnet50.a1_in1k@main"),
        ("1/2 and 3 / 4", "1/2 and 3 / 4"),
        ("layer4.0=blocks.11", "layer4.0=blocks.11"),
    ],
)
def test_paths_are_their_last_part(text, expected):
    assert without_paths(text) == expected


def test_tokens_are_removed(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my-own-token")
    assert redact(f"token {TOKEN}, my-own-token, other", ["other"]) == f"token {REMOVED}, {REMOVED}, other"
    assert redact("a long secret", ["long secret"]) == f"a {REMOVED}"
    assert redact("Authorization: Bearer abc.def") == f"Authorization: Bearer {REMOVED}"
    assert redact("hf_reprot and hf_hub_download") == "hf_reprot and hf_hub_download"
    assert holds_token(TOKEN)
    assert holds_token("x my-own-token x")
    assert not holds_token("hf_reprot")


def test_everything_in_a_json_value_is_cleaned():
    assert public({"/a/b/c": [TOKEN, 1, None, {"x": "/a/b"}]}) == {"c": [REMOVED, 1, None, {"x": "b"}]}


def test_a_folder_has_a_name_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_name(".") == tmp_path.name
    assert folder_name("/") == "folder"
