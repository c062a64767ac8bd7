"""The short form of `make fleet`: a daemon of some sources, and five hosts for some seconds."""

import pytest

from tests.fleet import one_host, watching
from tests.fleet.__main__ import main
from tests.fleet.queries import QUERIES
from tests.support.deadlines import wait_until

HOSTS, INTERVAL = 5, 2.0


@pytest.mark.mount
def test_one_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """More sources are more samples; of one metric there are fewer, and fewer bytes."""
    monkeypatch.setattr(one_host, "TIMES", 3)
    assert main(["host", "--sources", "10", "60"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    few, many = (line for line in table if line and line[0] in ("10", "60"))
    assert int(many[1].replace(",", "")) - int(few[1].replace(",", "")) == 500
    cost = one_host.measure(20)
    assert cost.some[0] == cost.sources == 20
    assert 200 < cost.series < 300
    assert cost.some[1] < cost.packed < cost.plain
    assert cost.memory > 1 << 20
    assert min(cost.cpu, cost.seconds, cost.some[2]) > 0


@pytest.mark.tools
@pytest.mark.parametrize("agent", [False, True], ids=["server", "agent"])
def test_small_fleet(agent: bool) -> None:
    """VictoriaMetrics gets each series, and each query has an answer."""
    with watching.start(HOSTS, INTERVAL, agent=agent) as fleet:
        found = watching.watch(fleet, 3 * INTERVAL)
        # A scrape that came too late leaves a gap, until the next one.
        wait_until(lambda: fleet.answering.count_series(HOSTS) == fleet.storage.count_series(HOSTS))
        lines = list(watching.tell(fleet, found))
    assert len(found.answers) == (1 if agent else 2)
    for answers in found.answers.values():
        assert answers.keys() == QUERIES.keys()
        assert all(one.series and one.now > 0 and one.graph > 0 for one in answers.values())
    assert found.scrapes
    assert found.size[1] < found.size[0]
    assert found.sent > 0
    assert bool(found.rules) == (not agent)
    assert agent == (found.federated is None)
    assert found.federated is None or found.federated.series >= HOSTS
    assert all(use.memory > 1 << 20 and use.cpu > 0 for use in found.uses.values())
    assert len(lines) > 15


def test_wrong_part(capsys: pytest.CaptureFixture[str]) -> None:
    """A part that there is not is a mistake, and those that there are are named."""
    with pytest.raises(SystemExit):
        main(["fleets"])
    assert "no such part: fleets; there are host, fleet" in capsys.readouterr().err
