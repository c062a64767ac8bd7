"""Real KVM: the statistics that the kernel keeps of virtual machines, as sources.

`values` makes values of the kernel's descriptors. `descriptors` makes sources of a statistics
descriptor, for a VMM that embeds statsfs. `qemu` shows the VMs that QEMU runs: `qmp_sockets` finds
them, `qmp` asks them, `qmp_answers` decodes what they answer.
"""

from statsfs.kvm.descriptors import KvmStats
from statsfs.kvm.values import index_values, make_values

__all__ = ["KvmStats", "index_values", "make_values"]
