"""Ends of VMs that are told late: which VM of a name they are of."""

from statsfs.kvm.told_vms import ToldVms


def test_one_after_the_other() -> None:
    """Each end is that of the VM which is shown, also of one that was there before."""
    told = ToldVms()
    for begin in (told.know, told.create, told.create):
        begin("1-2")
        assert told.names == {"1-2": 1}
        assert told.destroy("1-2")
        assert told.names == {}
    assert told.destroy("7-8")  # nothing is known of it


def test_an_end_that_is_told_after_the_next_beginning() -> None:
    """It is not that of the next VM, whether a look has seen that the first one is gone or not."""
    told = ToldVms()
    for _ in range(3):
        told.create("1-2")
        told.create("1-2")
        assert not told.destroy("1-2")
        told.end_early("1-2")  # a look finds the second one in place of the first
        assert told.destroy("1-2")
        told.create("1-2")
        told.end_early("1-2")
        told.create("1-2")
        assert not told.destroy("1-2")
        assert told.destroy("1-2")
        assert told.names == {}


def test_a_beginning_without_a_name() -> None:
    """The kernel gives no name where one that has ended has it: of that one the end is told."""
    told = ToldVms()
    told.create("1-2")
    told.end_early("1-2")  # the second one is shown
    assert not told.destroy("1-2")
    assert told.destroy("1-2")  # whatever tells it


def test_uevents_that_were_lost() -> None:
    """An end that is awaited may be among them: the next one counts."""
    told = ToldVms()
    told.create("1-2")
    told.end_early("1-2")
    told.lose()
    assert told.destroy("1-2")
