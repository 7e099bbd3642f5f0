from __future__ import annotations

import pytest

from app.filenames import attachment, migrated_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("old.ckpt", "old.migrated.ckpt"),
        ("model.v1.pt", "model.v1.migrated.pt"),
        ("model", "model.migrated"),
        ("old.migrated.ckpt", "old.migrated.migrated.ckpt"),
        ("/etc/passwd", "passwd.migrated"),
        ("..\\..\\windows\\old.ckpt", "old.migrated.ckpt"),
        ("../..", "checkpoint.migrated.ckpt"),
        (".ckpt", "ckpt.migrated"),
        ("a\r\nSet-Cookie: x.ckpt", "aSet-Cookie: x.migrated.ckpt"),
        ("модель.ckpt", "модель.migrated.ckpt"),
        ("", "checkpoint.migrated.ckpt"),
        (None, "checkpoint.migrated.ckpt"),
    ],
)
def test_answer_is_called_after_the_upload_and_never_the_same(
    name: str | None, expected: str
) -> None:
    assert migrated_name(name) == expected


def test_long_names_end_where_file_systems_do() -> None:
    assert len(migrated_name("ж" * 1000 + ".ckpt").encode()) <= 255


def test_zip_has_the_name_and_its_own_extension() -> None:
    assert migrated_name("old.ckpt", extension=".zip") == "old.migrated.zip"


def test_plain_name_stands_beside_the_true_one() -> None:
    value = attachment('моя "model".migrated.ckpt')

    assert 'filename="___ _model_.migrated.ckpt"' in value
    assert value.endswith("filename*=UTF-8''%D0%BC%D0%BE%D1%8F%20%22model%22.migrated.ckpt")
    assert value.isascii()
