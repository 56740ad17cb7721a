"""Parts of a file that stays on its server."""

import io

import pytest
from file_server import CONTENT, Shelf

from cellsignal.data.download.http import RemoteFile
from cellsignal.errors import StepFailed


def test_a_remote_file_reads_like_one_on_the_disk(shelf: Shelf) -> None:
    with RemoteFile(shelf.url("plates.zip")) as remote:
        stream = io.BufferedReader(remote, 100_000)
        assert stream.seek(0, 2) == len(CONTENT)
        stream.seek(-22, 2)
        assert stream.read() == CONTENT[-22:]
        stream.seek(1_234_567)
        assert stream.read(250_000) == CONTENT[1_234_567:1_484_567]
        assert remote.fetched < 450_000


def test_a_remote_file_survives_cuts_and_busy_moments(shelf: Shelf) -> None:
    with RemoteFile(shelf.url("plates.zip")) as remote:
        shelf.cuts, shelf.answers = [10, 20], [(503, {})]
        assert io.BufferedReader(remote, 100_000).read(1000) == CONTENT[:1000]
        shelf.answers = [(503, {})] * 9
        with pytest.raises(StepFailed, match="HTTP 503"):
            remote.read(10)


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_remote_file_that_changes_or_has_no_parts(shelf: Shelf, heeds_if_range: bool) -> None:
    shelf.heeds_if_range = heeds_if_range
    with RemoteFile(shelf.url("plates.zip")) as remote:
        shelf.etag = '"two"'
        with pytest.raises(StepFailed, match="changed while it was read"):
            remote.read(10)
    shelf.ranges = False
    with pytest.raises(StepFailed, match=r"cannot be downloaded in parts \(no range requests\); look at the proxy, or download the whole file$"):
        RemoteFile(shelf.url("plates.zip"))
    with pytest.raises(StepFailed, match="HTTP 404"):
        RemoteFile(shelf.url("elsewhere.zip"))
