"""Real KVM: the statistics that the kernel keeps of virtual machines, as sources.

Owns nothing itself: `values` makes values of the kernel's descriptors, `descriptors` sources of a
statistics descriptor, for a VMM that embeds statsfs; `qemu` shows the VMs that QEMU runs: `sockets`
finds them, `qmp` asks them, `answers` understands them. `guests` runs guests of a few bytes, for
the demo. `mock_kvm` shows the same names and shapes where there is no KVM.

Threading: see the modules.
"""

from statsfs.kvm.descriptors import KvmStats
from statsfs.kvm.values import index_values, make_values

__all__ = ["KvmStats", "index_values", "make_values"]
