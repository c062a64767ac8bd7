"""Real KVM: the statistics that the kernel keeps of virtual machines, as sources.

`values` makes values of the kernel's descriptions. `descriptors` makes sources of statistics
descriptors, for a VMM that embeds statsfs. `qemu` shows the VMs that QEMU runs: `qmp_sockets` finds
their sockets, `qmp` queries them, `qmp_answers` decodes the answers.
"""

from statsfs.kvm.descriptors import KvmStats
from statsfs.kvm.values import index_values, make_values

__all__ = ["KvmStats", "index_values", "make_values"]
