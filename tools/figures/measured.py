"""The measurements under one folder: reading them, and choosing between two of one thing."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qvae_trt.bench.compare import merge
from qvae_trt.bench.results import BenchResult, Cell, load
from qvae_trt.errors import BenchError
from qvae_trt.profiles import load_profiles, load_static_sizes

if TYPE_CHECKING:
    from pathlib import Path


#: The folders of the machines that were measured; the first is the one meant where none is named.
HOSTS = ("h100", "h200")


class MissingError(Exception):
    """There is no such measurement."""


class Measured:
    """What the JSON files under one folder hold: of one machine, or under `folder` itself.

    Args:
        folder: `benchmarks/`.
        host: the machine's folder in it.
    """

    def __init__(self, folder: Path, host: str = HOSTS[0]) -> None:
        self.folder = folder
        self.host = host

    def named(self, key: str) -> tuple[Measured, str]:
        """The measurements that a key is about, and the key without the name of their machine."""
        host, slash, rest = key.partition("/")
        if not slash or host not in HOSTS:
            return self, key
        return self.of(host), rest

    def of(self, host: str) -> Measured:
        """The same folder's measurements of another machine, read once."""
        if host == self.host:
            return self
        if host not in self._of_hosts:
            self._of_hosts[host] = Measured(self.folder, host)
        return self._of_hosts[host]

    def read(self, file: str) -> Any:
        """What is in a JSON file of the folder; MissingError where it is not there."""
        source = self.folder / file
        if not source.is_file():
            raise MissingError
        return json.loads(source.read_bytes())

    @cached_property
    def _of_hosts(self) -> dict[str, Measured]:
        return {}

    @cached_property
    def result(self) -> BenchResult | None:
        """The latencies: all results of one machine and model as one table, the newest
        first, so that of two measurements of one thing it is the newer that counts.
        """
        found = []
        for path in sorted((self.folder / self.host).rglob("*.json")):
            try:
                data = json.loads(path.read_bytes())
                if isinstance(data, dict) and data.get("schema") == "qvae/latency":
                    found.append(load(path))
            except (ValueError, BenchError) as error:
                print(f"{path}: left out: {error}", file=sys.stderr)
        tables: list[BenchResult] = []
        for result in sorted(found, key=lambda one: one.runs[0].created, reverse=True):
            for index, table in enumerate(tables):
                with suppress(BenchError):  # another machine, driver or model
                    tables[index] = merge([table, result])
                    break
            else:
                tables.append(result)
        tables.sort(key=lambda table: len(_timed(table)), reverse=True)
        for table in tables[1:]:
            name = f"{table.runs[0].place}, driver {table.runs[0].machine.get('driver')}"
            print(f"left out: {len(_timed(table))} latencies of {name}", file=sys.stderr)
        return _in_order(tables[0]) if tables else None

    @property
    def table(self) -> BenchResult:
        """The latencies; MissingError where there are none."""
        if self.result is None:
            raise MissingError
        return self.result

    @property
    def paths(self) -> list[str]:
        """The paths that were timed at some size."""
        timed = {cell.path for cell in _timed(self.table)}
        return [path for path in self.table.paths if path in timed]

    @property
    def sets(self) -> dict[str, BenchResult]:
        """The latencies of the static sizes, and of all others; what was not measured is absent."""
        static = set(load_static_sizes().values())
        found = {}
        for name in ("static", "others"):
            cells = [c for c in self.table.cells if (c.resolution in static) is (name == "static")]
            if cells:
                found[name] = replace(self.table, cells=tuple(cells), service=())
        return found

    @cached_property
    def parity(self) -> list[dict[str, Any]]:
        """Every row that ran, of every parity report there."""
        reports = [data for data in self._others if "reference_proof" in data]
        return [row for data in reports for row in data["rows"] if "psnr_db" in row]

    @cached_property
    def footprint(self) -> list[dict[str, Any]]:
        """The rows that footprint.py wrote, of the full-size VAE alone: files of other names hold
        what earlier engines took.
        """
        files = sorted((self.folder / self.host).rglob("footprint.json"))
        found = [json.loads(path.read_bytes()) for path in files]
        return [row for data in found if data.get("model") == "random:full" for row in data["rows"]]

    @cached_property
    def planned(self) -> list[dict[str, Any]]:
        """The engines of rtx/scratch.py; MissingError where it has not been run."""
        engines: list[dict[str, Any]] = self.read("rtx/scratch.json")["engines"]
        return engines

    @cached_property
    def beside(self) -> list[dict[str, Any]]:
        """What LightX2V published of its engines, by size; MissingError where it is not there."""
        rows: list[dict[str, Any]] = self.read("peers/lightx2v.json")["rows"]
        return rows

    @cached_property
    def builds(self) -> list[dict[str, Any]]:
        """What building each engine took, by the sidecars; of several of one kind the latest.

        A sidecar is named as `qvae build` names it. One of another name is of a build that is not
        done so any more, or that had the timings of an earlier one.
        """
        latest: dict[tuple[str, ...], dict[str, Any]] = {}
        for path in sorted((self.folder / self.host).rglob("*.trt.json")):
            data = json.loads(path.read_bytes())
            key = data["key"]
            size = key["profiles"][0]["opt"] if key["mode"] == "static" else None
            row = {name: key[name] for name in ("flavour", "flavour_version", "gpu")}
            row |= {"part": key["part"], "mode": key["mode"], "size": size}
            kind = tuple(map(str, row.values()))
            row |= {"seconds": data["build_seconds"], "bytes": data["engine"]["bytes"]}
            if kind not in latest or latest[kind]["created"] < data["created"]:
                latest[kind] = row | {"created": data["created"]}
        rows = [latest[kind] for kind in sorted(latest)]
        return [{k: v for k, v in row.items() if k != "created"} for row in rows]

    def first_use(self, state: str) -> dict[str, Any]:
        """What gpu/first_use.py wrote with a `cold` or a `warm` cache of compiled kernels, or with
        a warm one on a `busy` host.
        """
        file = {"busy": "first_use_while_copying/first_use_warm"}.get(state, f"first_use_{state}")
        rows: dict[str, Any] = self.read(f"{self.host}/{file}.json")["milliseconds"]
        return rows

    @cached_property
    def _others(self) -> list[dict[str, Any]]:
        found = [
            json.loads(p.read_bytes()) for p in sorted((self.folder / self.host).rglob("*.json"))
        ]
        return [data for data in found if isinstance(data, dict)]


def _timed(table: BenchResult) -> list[Cell]:
    return [cell for cell in table.cells if cell.timing is not None]


def _in_order(table: BenchResult) -> BenchResult:
    """Static sizes first, then what profiles were tuned for, then the rest; as their files list
    them.
    """
    listed = [*load_static_sizes().values(), *(profile.opt for profile in load_profiles())]

    def place(cell: Cell) -> tuple[int, int]:
        size = cell.resolution
        return (listed.index(size), 0) if size in listed else (len(listed), size.pixels)

    return replace(table, cells=tuple(sorted(table.cells, key=place)))
