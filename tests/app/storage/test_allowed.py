"""What a job may read from and write to: what the operator lists, and never what the service keeps for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import ServiceError
from app.settings import Settings
from app.storage.allowed import AllowedLocations


@pytest.mark.parametrize("url", ["s3://bucket/in/a.ckpt", "s3://bucket/in/deep/b", "s3://other/c"])
def test_what_lies_below_a_folder_that_is_listed_is_allowed(url: str) -> None:
    allowed = AllowedLocations.of("source", ["s3://bucket/in", "s3://other"], own="s3://bucket/own")

    assert str(allowed.parse(url)) == url


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a.ckpt",
        "s3://bucket/index",
        "gs://bucket/in/a.ckpt",
        # The service's own, though all of its bucket is listed.
        "s3://other/own/uploads/1/2",
        "s3://other/own/results/1/2/checkpoint",
    ],
)
def test_everything_else_is_refused(url: str) -> None:
    allowed = AllowedLocations.of("source", ["s3://bucket/in", "s3://other"], own="s3://other/own")

    with pytest.raises(ServiceError) as caught:
        allowed.parse(url)

    assert caught.value.error_type == "source_not_allowed"


def test_results_of_a_service_are_its_own(tmp_path: Path) -> None:
    pytest.importorskip("obstore", reason="the extra [jobs] is not installed")
    from app.storage.transfers import Transfers

    transfers = Transfers.from_settings(
        Settings(
            migrations_folder=tmp_path,
            scratch_folder=tmp_path,
            allowed_sources="s3://bucket",
            allowed_destinations="s3://bucket",
            database_url="postgresql://host/jobs",
            results_url="s3://bucket/own",
        )
    )

    for url in ("s3://bucket/own/uploads/1/2", "s3://bucket/own/x"):
        with pytest.raises(ServiceError):
            transfers.parse(url, None)
        with pytest.raises(ServiceError):
            transfers.parse("s3://bucket/a", url)
    assert transfers.parse("s3://bucket/a", "s3://bucket/owner") is not None
