"""Where jobs keep their files until they have ended: the upload, and what runs have left beside it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app.copying import flush
from app.run_request import PRESENT_NAME, UPLOAD_NAME
from app.scratch import remove_tree
from app.settings import PREFIX, SettingsError

logger = logging.getLogger(__name__)


class JobFolders:
    """One folder for each job, and one for uploads that are no job yet."""

    def __init__(self, data_folder: Path) -> None:
        self.incoming = data_folder / "incoming"
        self._jobs = data_folder / "jobs"
        # What came in when the service was killed was promised to nobody.
        shutil.rmtree(self.incoming, ignore_errors=True)
        for folder in (self.incoming, self._jobs):
            folder.mkdir(mode=0o700, exist_ok=True)

    def accept(self, upload: Path, job_id: str) -> None:
        """Make an upload that has come in whole that of a job, for good; unless the job has one already."""
        folder = self._jobs / job_id
        folder.mkdir(mode=0o700, exist_ok=True)
        flush(upload)
        with contextlib.suppress(FileExistsError):
            os.link(upload, folder / UPLOAD_NAME)
        flush(folder)
        flush(self._jobs)

    def open(self, job_id: str) -> None:
        """Make the folder of a job without an upload: as long as it is there, the job is looked after."""
        (self._jobs / job_id).mkdir(mode=0o700, exist_ok=True)
        flush(self._jobs)

    def upload(self, job_id: str) -> Path:
        return self._jobs / job_id / UPLOAD_NAME

    def new_upload(self, job_id: str) -> Path:
        """Return where the checkpoint of a job is to be written that lies elsewhere."""
        (self._jobs / job_id).mkdir(mode=0o700, exist_ok=True)
        self.upload(job_id).with_name(PRESENT_NAME).unlink(missing_ok=True)
        return self.upload(job_id)

    def begin_run(self, job_id: str, scratch_root: Path, *, with_upload: bool = True) -> Path:
        """Return a new folder of the scratch for one run, with the upload in it unless it needs none.

        Raises:
            FileNotFoundError: the job has no upload any more.
        """
        run = Path(tempfile.mkdtemp(prefix="run-", dir=scratch_root))
        if not with_upload:
            return run
        try:
            # A second name: what a run does to the names in its folder leaves the first as it is.
            os.link(self.upload(job_id), run / UPLOAD_NAME)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copyfile(self.upload(job_id), run / UPLOAD_NAME)
        present = self.upload(job_id).with_name(PRESENT_NAME)
        if present.exists():
            shutil.copyfile(present, run / PRESENT_NAME)
            (run / PRESENT_NAME).chmod(0o644)
        return run

    def remove(self, job_id: str) -> None:
        try:
            remove_tree(self._jobs / job_id)
        except FileNotFoundError:
            pass
        except OSError:
            logger.exception("The files of job %s could not be removed", job_id)

    def ids(self) -> list[str]:
        """Return the jobs that have files here."""
        return sorted(path.name for path in self._jobs.iterdir())


@contextlib.contextmanager
def sole_user(data_folder: Path) -> Iterator[None]:
    """Have this folder for this process alone, and make it where it is missing.

    Raises:
        SettingsError: another process has it, or it cannot be written to.
    """
    variable = f"{PREFIX}DATA_FOLDER={data_folder}"
    try:
        data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(data_folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"{variable} cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        message = f"{variable} is used by another service; each needs one of its own."
        raise SettingsError(message) from error
    try:
        yield
    finally:
        os.close(descriptor)
