"""The learner's data: one dataset out of parquet files in a directory, or of a node's data server (Arrow Flight).

FLOPS_DATA         a directory of files <tag>.<hash>.parquet; where it exists, it is used
FLOPS_DATA_SERVER  else this Arrow Flight server (default: the one that FLOps runs on each node)
FLOPS_DATA_TAGS    the learner's tags, separated by commas; none: all data
FLOPS_DATA_SHARD   "i/n", i from 0: only every n-th row, starting with row i
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_wire import flops

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Seconds that a data server may take to answer.
SERVER_SECONDS = 60
#: Seconds that one of its tables may take to arrive.
TABLE_SECONDS = 6 * 3600


class DataMissing(Exception):
    """There is no data for this learner; the message says where it was looked for and what is there."""


@dataclass(frozen=True)
class Shard:
    """Which rows are this learner's: those whose number leaves `index` when divided by `count`."""

    index: int
    count: int


def read_table(environment: Mapping[str, str] = os.environ) -> Any:
    """One `pyarrow.Table` of all rows that are this learner's, with the metadata that describes Hugging Face features."""
    import pyarrow as pa  # noqa: PLC0415 - only where the user asks for data

    tags = tuple(tag.strip() for tag in environment.get("FLOPS_DATA_TAGS", "").split(",") if tag.strip())
    shard = parse_shard(environment.get("FLOPS_DATA_SHARD", ""))
    directory = Path(environment.get("FLOPS_DATA") or "/data")
    if directory.is_dir():
        source, tables = f"the files in {directory}", _files(directory, tags, shard)
    else:
        default = f"grpc://{flops.DATA_SERVER_HOST}:{flops.DATA_SERVER_PORT}"
        address = environment.get("FLOPS_DATA_SERVER") or default
        source, tables = f"the data server {address}", _flights(address, tags, shard)
    table = _joined([table for table in tables], pa)  # noqa: C416 - a generator's errors belong here
    if table.num_rows == 0:
        part = f" for shard {shard.index}/{shard.count}" if shard.count > 1 else ""
        raise DataMissing(f"{source} hold no rows{part}")
    return table


def parse_shard(text: str) -> Shard:
    """`0/2` is the first of two; empty is all rows. ValueError for anything else."""
    if not text:
        return Shard(0, 1)
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"FLOPS_DATA_SHARD is {text!r}; it must read i/n with i from 0 to n - 1, such as 0/2")
    return Shard(int(index), int(count))


def tag_of(path: Path) -> str:
    return path.name.split(".")[0]


def _files(directory: Path, tags: tuple[str, ...], shard: Shard) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    found = sorted(path for path in directory.glob("*.parquet") if path.is_file())
    chosen = [path for path in found if not tags or tag_of(path) in tags]
    if not chosen:
        there = ", ".join(sorted({tag_of(path) for path in found})) or "no parquet files at all"
        wanted = f"no files for the tags {', '.join(tags)}" if tags else "no files named <tag>.<hash>.parquet"
        raise DataMissing(f"{directory} holds {wanted}; it holds: {there}")
    offset = 0
    for path in chosen:
        try:
            with path.open("rb") as stream:
                file = pq.ParquetFile(stream)
                batches = list(_rows(file.iter_batches(), shard, offset))
                offset += file.metadata.num_rows
                table = pa.Table.from_batches(batches, schema=file.schema_arrow)
        except (pa.ArrowException, OSError) as error:
            raise DataMissing(f"{path} can't be read as a parquet file: {str(error)[:300]}") from error
        yield path.name, table


def _flights(address: str, tags: tuple[str, ...], shard: Shard) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import flight  # noqa: PLC0415

    options = flight.FlightCallOptions(timeout=SERVER_SECONDS)
    criteria = json.dumps({"data_tags": list(tags)}).encode()
    try:
        with flight.connect(address) as client:
            endpoints = [e for info in client.list_flights(criteria, options) for e in info.endpoints]
            offset = 0
            for number, endpoint in enumerate(sorted(endpoints, key=lambda e: e.ticket.ticket)):
                reader = client.do_get(endpoint.ticket, flight.FlightCallOptions(timeout=TABLE_SECONDS))
                table = reader.read_all()
                batches = list(_rows(table.to_batches(), shard, offset))
                offset += table.num_rows
                yield f"flight {number + 1}", pa.Table.from_batches(batches, schema=table.schema)
    except (flight.FlightError, pa.ArrowException) as error:
        raise DataMissing(
            f"the data server {address} did not answer ({str(error)[:300]}); "
            "mount a directory of <tag>.<hash>.parquet files and name it with FLOPS_DATA, or set FLOPS_DATA_SERVER"
        ) from error
    if not endpoints:
        raise DataMissing(f"the data server {address} has nothing for the tags {', '.join(tags) or '(all)'}")


def _rows(batches: Any, shard: Shard, offset: int) -> Iterator[Any]:
    """Each batch's rows of this shard; `offset` is the first batch's row number over all files."""
    import pyarrow as pa  # noqa: PLC0415

    for batch in batches:
        if shard.count == 1:
            yield batch
        else:
            first = (shard.index - offset) % shard.count
            yield batch.take(pa.array(range(first, batch.num_rows, shard.count), type=pa.int64()))
        offset += batch.num_rows


def _joined(tables: list[tuple[str, Any]], pa: Any) -> Any:
    first_name, first = tables[0]
    for name, table in tables[1:]:
        if not table.schema.equals(first.schema):
            raise DataMissing(
                f"{name} has other columns ({_columns(table)}) than {first_name} ({_columns(first)}); "
                "choose one of them by its tag"
            )
    return pa.concat_tables([table for _, table in tables]).replace_schema_metadata(first.schema.metadata)


def _columns(table: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in table.schema)[:300]
