"""A query holds what it may hold, whatever the file's layout."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from doma.auth.gate import Gate
from doma.core.config import Scan
from doma.scan.model import build
from doma.scan.service import ScanService
from doma.store.protocol import Stat


class Single:
    """An opener of one file that notes how much is read from it at once."""

    def __init__(self, path):
        self.path = path
        self.largest = 0

    def stat(self, path):
        return Stat(path, self.path.stat().st_size, "1", 0.0)

    def list(self, path):
        return []

    def open(self, path):
        file = self.path.open("rb")
        plain = file.read
        single = self

        class Noting:
            seek, tell, close = file.seek, file.tell, file.close

            def read(self, size=-1):
                data = plain(size)
                single.largest = max(single.largest, len(data))
                return data

        return Noting(), self.stat(path)


@pytest.mark.fault
def test_a_row_group_larger_than_the_memory_is_read_in_slices(tmp_path):
    values = np.arange(3_000_000, dtype=np.float64)
    table = pa.table({"a": values, "b": values})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=len(values), compression="none", use_dictionary=False)
    del table
    opener = Single(path)
    service = ScanService({"f": opener}, None, {"f": Gate({}, public=True)}, Scan(memory=8 << 20))
    where = {">=": [{"col": "a"}, {"lit": 10}]}
    planned = service.plan(build({"v": 1, "from": "/f/x.parquet", "where": where}), None)
    before = pa.total_allocated_bytes()
    peak = rows = 0
    for batch in service.run(planned.parts[0].ticket, None):
        rows += batch.num_rows
        peak = max(peak, pa.total_allocated_bytes() - before)
    service.close()
    assert rows == len(values) - 10
    assert peak < 8 << 20
    assert opener.largest < 4 << 20
