"""Which rows a learner gets, out of files and out of a data server, and what it is told where there are none."""

import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import flight

from flops_worker import data


def write(directory, name, rows, metadata=None, **columns):
    table = pa.table({"row": pa.array(rows, type=pa.int64()), **columns})
    pq.write_table(table.replace_schema_metadata(metadata), directory / name, row_group_size=4)


@pytest.fixture
def directory(tmp_path):
    write(tmp_path, "digits.aa.parquet", range(10), {"huggingface": '{"info": {}}'})
    write(tmp_path, "digits.bb.parquet", range(10, 17))
    write(tmp_path, "faces.cc.parquet", range(100, 103))
    (tmp_path / "README.md").write_text("no data")
    return tmp_path


def rows(environment):
    return data.read_table(environment)["row"].to_pylist()


def test_all_files(directory):
    assert rows({"FLOPS_DATA": str(directory)}) == [*range(17), 100, 101, 102]


@pytest.mark.parametrize(
    ("tags", "count"), [("digits", 17), ("faces", 3), ("faces,digits", 20), (" faces , nothing ", 3), ("", 20)]
)
def test_tags_choose_files(directory, tags, count):
    assert len(rows({"FLOPS_DATA": str(directory), "FLOPS_DATA_TAGS": tags})) == count


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_disjoint_and_complete_over_all_files(directory, count):
    parts = [rows({"FLOPS_DATA": str(directory), "FLOPS_DATA_SHARD": f"{i}/{count}"}) for i in range(count)]
    everything = [*range(17), 100, 101, 102]
    assert sorted(row for part in parts for row in part) == everything
    assert parts == [everything[i::count] for i in range(count)]


def test_the_description_of_features_is_kept(directory):
    table = data.read_table({"FLOPS_DATA": str(directory), "FLOPS_DATA_SHARD": "1/2"})
    assert table.schema.metadata == {b"huggingface": b'{"info": {}}'}


def test_unknown_tags_are_told_with_those_that_there_are(directory):
    with pytest.raises(data.DataMissing, match="no files for the tags cats; it holds: digits, faces"):
        data.read_table({"FLOPS_DATA": str(directory), "FLOPS_DATA_TAGS": "cats"})


def test_an_empty_directory_is_told(tmp_path):
    with pytest.raises(data.DataMissing, match="no parquet files at all"):
        data.read_table({"FLOPS_DATA": str(tmp_path)})


def test_more_shards_than_rows_are_told(directory):
    environment = {"FLOPS_DATA": str(directory), "FLOPS_DATA_TAGS": "faces", "FLOPS_DATA_SHARD": "3/4"}
    with pytest.raises(data.DataMissing, match="hold no rows for shard 3/4"):
        data.read_table(environment)


def test_files_with_other_columns_are_told(directory):
    write(directory, "digits.dd.parquet", [1], label=["a"])
    with pytest.raises(data.DataMissing, match=r"digits\.dd\.parquet has other columns .*label: string"):
        data.read_table({"FLOPS_DATA": str(directory), "FLOPS_DATA_TAGS": "digits"})


@pytest.mark.parametrize("text", ["2/2", "a/2", "1", "1/0", "-1/2", "/", "0/2/3"])
def test_a_shard_must_be_one(text):
    with pytest.raises(ValueError, match="FLOPS_DATA_SHARD"):
        data.parse_shard(text)


class Server(flight.FlightServerBase):
    """As FLOps' data server: flights by tags, the path as ticket."""

    def __init__(self, directory):
        self.directory = directory
        super().__init__("grpc://127.0.0.1:0")

    def list_flights(self, context, criteria):
        tags = json.loads(criteria)["data_tags"]
        for path in sorted(self.directory.glob("*.parquet"), reverse=True):
            if not tags or path.name.split(".")[0] in tags:
                descriptor = flight.FlightDescriptor.for_path(path.name)
                endpoint = flight.FlightEndpoint(path.name.encode(), [])
                yield flight.FlightInfo(pq.read_schema(path), descriptor, [endpoint], -1, -1)

    def do_get(self, context, ticket):
        return flight.RecordBatchStream(pq.read_table(self.directory / ticket.ticket.decode()))


@pytest.fixture
def server(directory):
    with Server(directory) as server:
        yield f"grpc://127.0.0.1:{server.port}"


def test_a_data_server_gives_the_same_as_the_files(directory, server):
    for tags, shard in (("", ""), ("digits", "1/3"), ("faces", "0/1")):
        environment = {"FLOPS_DATA_TAGS": tags, "FLOPS_DATA_SHARD": shard}
        from_server = data.read_table({"FLOPS_DATA": "/nonexistent", "FLOPS_DATA_SERVER": server, **environment})
        assert from_server.equals(data.read_table({"FLOPS_DATA": str(directory), **environment}), check_metadata=True)


def test_a_data_server_without_the_tags_is_told(server):
    environment = {"FLOPS_DATA": "/nonexistent", "FLOPS_DATA_SERVER": server, "FLOPS_DATA_TAGS": "cats"}
    with pytest.raises(data.DataMissing, match="has nothing for the tags cats"):
        data.read_table(environment)


def test_a_data_server_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setattr(data, "SERVER_SECONDS", 2)
    environment = {"FLOPS_DATA": "/nonexistent", "FLOPS_DATA_SERVER": "grpc://127.0.0.1:1"}
    with pytest.raises(data.DataMissing, match=r"did not answer .*FLOPS_DATA"):
        data.read_table(environment)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"\xff\xff\xff\xffPAR1"])
def test_a_file_that_is_no_parquet_is_named(directory, content):
    (directory / "digits.ee.parquet").write_bytes(content)
    with pytest.raises(data.DataMissing, match=r"digits\.ee\.parquet can't be read as a parquet file"):
        data.read_table({"FLOPS_DATA": str(directory)})


def test_a_table_that_never_ends_is_told(directory, monkeypatch):
    class Slow(Server):
        def do_get(self, context, ticket):
            def batches():
                yield pa.record_batch({"row": [1]})
                time.sleep(3)
                yield pa.record_batch({"row": [2]})

            return flight.GeneratorStream(pa.schema({"row": pa.int64()}), batches())

    monkeypatch.setattr(data, "TABLE_SECONDS", 1)
    with Slow(directory) as server, pytest.raises(data.DataMissing, match="did not answer"):
        data.read_table({"FLOPS_DATA": "/nonexistent", "FLOPS_DATA_SERVER": f"grpc://127.0.0.1:{server.port}"})
