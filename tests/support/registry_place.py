"""A place in this process: the views of a registry, without a mount; and recordings of it."""

from pathlib import Path as File

from statsfs import Aggregate, Registry, Source, Stats, Unit, gauge, log_hist, peak, u64
from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Path, Schema, parse_schema
from statsfs.eyes.samples import Sample, parse_sample
from statsfs.formats import json, schema
from statsfs.recordings.reading import Recording, open_recording
from statsfs.recordings.recorder import Recorder

__all__ = ["Place", "Tree", "Worker"]

BEGUN = 1_800_000_000.0


class Worker(Stats):
    requests = u64(Aggregate.SUM, description="Requests of all sorts")
    wait_ns = u64(Aggregate.SUM, unit=Unit.SECONDS, exponent=-9)
    memory = gauge(unit=Unit.BYTES)
    longest = peak()
    latency = log_hist(8, unit=Unit.SECONDS, exponent=-9)


class Place:
    """What a registry shows.

    Attributes:
        error: why there is nothing to read, if so.
        asked: the paths whose schemas were read.
        schemas: whether there are any.
    """

    writable = False
    partial = True

    def __init__(self, registry: Registry, name: str = "/run/stats") -> None:
        self.name = name
        self.error = ""
        self.asked: list[Path] = []
        self.schemas = True
        self._registry = registry

    def read_schema(self, path: Path = ()) -> Schema:
        """Return what is known of a source and those below it."""
        self.asked.append(path)
        if not self.schemas:
            raise SampleError(f"{self.name}: gone")
        whole = parse_schema(schema.render(self._registry.snapshot()))
        found = whole.below(path)
        assert found is not None
        return found

    def read_sample(self) -> Sample:
        """Return the numbers of now."""
        if self.error:
            raise SampleError(f"{self.name}: {self.error}")
        return parse_sample(json.render(self._registry.snapshot()), 0, 0)

    def clear(self, path: Path, name: str) -> None:
        """Refuse."""
        raise SampleError("read-only")


class Tree:
    """Two workers of an application, and a recorder of them."""

    def __init__(self, file: File) -> None:
        self.registry = Registry()
        self.place = Place(self.registry)
        self.app = Source("app")
        self.registry.register(self.app)
        self.workers = [self.add(f"worker{number}") for number in range(2)]
        self.file = file
        self.recorder = Recorder(str(file), [self.place], 1.0)
        self.time = BEGUN

    def add(self, name: str) -> Worker:
        """Add a worker."""
        stats = Worker()
        source = Source(name, label="worker")
        source.add_values(Worker, stats)
        self.app.add_subordinate(source)
        return stats

    def remove(self, name: str) -> None:
        """Remove a worker."""
        (source,) = (one for one in self.app.subordinates if one.name == name)
        self.app.remove_subordinate(source)

    def tick(self) -> dict[str, SampleError]:
        """Record the numbers of a second later."""
        errors = self.recorder.record(self.time)
        self.time += 1
        return errors

    def read(self) -> Recording:
        """Return the recording, as far as it is."""
        return open_recording(str(self.file))[0]
