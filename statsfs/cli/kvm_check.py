"""`statsfs kvm-check`: by which ways this host's VMs can be read, and why not by the others.

Threading: main thread only.
"""

import click

from statsfs.cli.serving import EPILOG
from statsfs.kvm.checking import CheckedVm, CheckedWays, check_ways
from statsfs.model.counts import count_of

__all__ = ["kvm_check"]


@click.command("kvm-check", epilog=EPILOG)
def kvm_check() -> None:
    """Print by which ways each virtual machine of this host can be read, and why not by others.

    `statsfs mount --kvm` reads it by the first one that works.

    \b
    Example:
      statsfs kvm-check
    """
    checked = check_ways()
    for line in _describe(checked):
        click.echo(line)
    if all(checked.ways.values()):
        raise click.ClickException("no way to read VMs works here")
    left = sum(vm.way is None for vm in checked.vms)
    if left:
        raise click.ClickException(f"{left} of {count_of(len(checked.vms), 'VM')} cannot be read")


def _describe(checked: CheckedWays) -> list[str]:
    lines = _list_ways(checked.ways)
    for vm in checked.vms:
        who = " ".join(filter(None, (vm.name, vm.identity.vmm, vm.identity.name)))
        lines += ["", f"{who}: {_tell_way(vm)}", *(f"  {line}" for line in _list_ways(vm.ways))]
    return lines if checked.vms else [*lines, "", "no VMs"]


def _list_ways(ways: dict[str, str]) -> list[str]:
    return [f"{name:<12} {why or 'works'}" for name, why in ways.items()]


def _tell_way(vm: CheckedVm) -> str:
    return "not shown" if vm.way is None else f"read by {vm.way}"
