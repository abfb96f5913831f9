"""
A large file on its way to S3, in parts that are read from disk while they are sent. Beside `s3`, an importer of boto3.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PART_BYTES = 8 << 20


def send(client: "S3Client", bucket: str, key: str, path: Path, mime: str, check: Callable[[], None]) -> None:
    """
    Upload a file in parts, several at once; `check` is called meanwhile, and what it raises ends the upload.
    """
    from boto3.s3.transfer import S3Transfer, TransferConfig
    from s3transfer.utils import OSUtils

    opened: list[Any] = []

    class Files(OSUtils):
        """
        Remembers the parts it opened: an aborted transfer leaves those it never sent open.
        """

        def open_file_chunk_reader(self, *where: Any, **options: Any) -> Any:
            opened.append(super().open_file_chunk_reader(*where, **options))
            return opened[-1]

    # Parts are read from disk while they are sent, so memory does not grow with their size.
    config = TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=4,
        preferred_transfer_client="classic",
    )
    try:
        # The stubs want botocore's own config here; boto3 passes this one itself.
        with S3Transfer(client=client, config=config, osutil=Files()) as transfer:  # type: ignore[arg-type]
            transfer.upload_file(
                str(path), bucket, key, callback=lambda _: check(), extra_args={"ContentType": mime}
            )
    finally:
        for part in opened:
            part.disable_callback()
            part.close()
