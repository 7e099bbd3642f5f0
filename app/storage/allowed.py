"""Which locations a job may read from and write to: those below what the operator lists, and no others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import ServiceError
from app.settings import PREFIX
from app.storage.locations import (
    InvalidLocation,
    Location,
    is_below,
    parse_folder,
    parse_location,
)


@dataclass(frozen=True, slots=True)
class AllowedLocations:
    """The folders of one setting, and what a location below them is for: source or destination.

    What the service keeps for itself (`own`) is not for its clients, wherever it lies.
    """

    role: str
    folders: tuple[Location, ...]
    own: Location | None = None

    @classmethod
    def of(cls, role: str, texts: Sequence[str], *, own: str | None = None) -> AllowedLocations:
        """Read the texts of the settings.

        Raises:
            InvalidLocation: one of them is no folder.
        """
        folders = [parse_folder(text) for text in texts]
        # What a file is compared with is where it really lies.
        real = [
            Location("file", "", os.path.realpath(each.path)) if each.scheme == "file" else each
            for each in folders
        ]
        return cls(role, tuple(real), None if own is None else parse_folder(own))

    @property
    def variable(self) -> str:
        return f"{PREFIX}ALLOWED_{self.role.upper()}S"

    def parse(self, text: str) -> Location:
        """Return the location that a URL names.

        Raises:
            ServiceError: it is none, or is not allowed.
        """
        try:
            location = parse_location(text)
        except InvalidLocation as error:
            message = f"The {self.role} is no URL of a checkpoint: {error}."
            raise ServiceError("invalid_location", message, role=self.role) from error
        self.refuse(location)
        return location

    def refuse(self, location: Location) -> None:
        """Refuse a location that is not allowed; a file's by where it really lies.

        Raises:
            ServiceError: it is not; says which setting would allow it.
        """
        if location.scheme == "file":
            location = Location("file", "", os.path.realpath(location.path))
        is_own = self.own is not None and is_below(location, self.own)
        if is_own or not any(is_below(location, folder) for folder in self.folders):
            raise ServiceError(
                f"{self.role}_not_allowed",
                f"This service may not use {location.scheme}://{location.authority} as it is asked to: "
                f"its operator has not listed the {self.role} in {self.variable}.",
            )
