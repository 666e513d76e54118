"""What a server keeps in the store: replies, feedback, files and batches. Nothing is opened before it is used."""

from __future__ import annotations

from pathlib import Path

from tuneloop.improvement.archive import Archive
from tuneloop.recipe.serve import BatchesPart, RecordsPart, ServePart
from tuneloop.serving.admission import Admission
from tuneloop.serving.batches.batch_table import BatchTable
from tuneloop.serving.batches.file_shelf import FileShelf
from tuneloop.serving.records import Records, ReplyWriter

MB = 1_000_000


class RecordKeeper:
    """One of a server: its archive, and what writes to it. `version` is what the server was started with."""

    def __init__(self, archive: Archive, records: RecordsPart, batches: BatchesPart, version: str = "") -> None:
        self.archive, self.records, self.batches, self.version = archive, records, batches, version
        self.writer = ReplyWriter(archive, masked=records.mask)
        self.shelf = FileShelf(archive, batches.storage_mb * MB)
        self.table = BatchTable(archive)

    @classmethod
    def of(cls, workspace: Path, settings: ServePart, version: str) -> RecordKeeper:
        """That of a workspace."""
        return cls(Archive(workspace), settings.records, settings.batches, version)

    def steps(self, records: RecordsPart | None = None) -> list[Admission]:
        """The step of admission, where replies are kept at all; by other settings from now on where they are given."""
        if records is not None:
            self.records, self.writer.masked = records, records.mask
        if self.records.replies == "off":
            return []
        return [Records(self.archive, self.writer, self.records, self.version)]

    def close(self) -> None:
        """Write down what waits, and let go of the store."""
        self.writer.close()
        self.archive.close()
