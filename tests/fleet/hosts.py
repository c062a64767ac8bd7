"""Hosts of a fleet, all in one process: a registry and a server of metrics for each.

Each host runs VMs, as the mock KVM has them, and a web service. Names and numbers are its own, and
move between scrapes. Its metrics are rendered, compressed and served by `serve_metrics`, as those
of a real host are; no mount, no segments and no descriptors of VMs are read for them.

    python -m tests.fleet.hosts HOSTS SECONDS

prints the ports as a list in JSON, then moves each host once in so many seconds until its standard
input ends.
"""

import json
import resource
import select
import sys
from random import Random

from statsfs.demo.mock_kvm import MockKvm
from statsfs.kvm.steal import SCHEDULER_VALUES
from statsfs.model.fields import counter, hist
from statsfs.model.stats import Stats
from statsfs.model.values import Unit
from statsfs.monitoring.exposition import serve_metrics
from statsfs.tree.families import Family
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["VCPUS", "VMS", "Host"]

VMS, VCPUS = 4, 2
ENDPOINTS, METHODS = ("/item/{id}", "/items"), ("GET", "PUT")
_MS = 10**6


class EndpointStats(Stats):
    """What a service counts of one endpoint and method, as examples/aiohttp_service.py does."""

    requests = counter("Requests answered")
    latency = hist(
        [ms * _MS for ms in (5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10**4)],
        unit=Unit.SECONDS,
        exponent=-9,
        description="Time to answer",
    )


class Host:
    """One host; `url` is where its metrics are."""

    def __init__(self, number: int) -> None:
        self._rng = Random(number)
        registry = Registry()
        self._kvm = MockKvm(registry, rate=0, seed=number)
        self._times: list[dict[str, int]] = []
        for _ in range(VMS):
            vm = self._kvm.create_vm(VCPUS)
            for vcpu in vm.source.subordinates:
                self._times.append(dict.fromkeys((one.name for one in SCHEDULER_VALUES), 0))
                vcpu.add_values(SCHEDULER_VALUES, self._times[-1])
        http = registry.register(Source("http"))
        family = Family(http, EndpointStats, "endpoint", "method")
        self._endpoints = [family(endpoint, method) for endpoint in ENDPOINTS for method in METHODS]
        self._server = serve_metrics(registry)
        self.port = self._server.port

    def move(self) -> None:
        """Count what happened in a moment."""
        for vm in self._kvm.vms:
            for vcpu in vm.vcpus:
                vcpu.make_exits(self._rng.randrange(20, 200))
        for times in self._times:
            times["run_ns"] += self._rng.randrange(1000 * _MS)
            times["wait_ns"] += self._rng.randrange(100 * _MS)
            times["timeslices"] += self._rng.randrange(1000)
        for stats in self._endpoints:
            for _ in range(self._rng.randrange(1, 10)):
                stats.requests += 1
                stats.latency.observe(int(self._rng.expovariate(10) * 1000 * _MS))

    def close(self) -> None:
        """Serve no more."""
        self._server.close()
        self._kvm.close()


def main(count: int, seconds: float) -> None:
    """Serve so many hosts until the standard input ends."""
    # A server has six descriptors.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    hosts = [Host(number) for number in range(count)]
    print(json.dumps([host.port for host in hosts]), flush=True)
    turn = 0
    while not select.select([sys.stdin], [], [], seconds / count)[0]:
        hosts[turn % count].move()
        turn += 1
    for host in hosts:
        host.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
