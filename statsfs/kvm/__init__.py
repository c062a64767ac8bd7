"""Real KVM: the kernel's statistics of VMs as sources, from descriptors and from QEMU."""

from statsfs.kvm.descriptors import KvmStats
from statsfs.kvm.values import index_values, make_values

__all__ = ["KvmStats", "index_values", "make_values"]
