# SPDX-License-Identifier: GPL-2.0-only
# A kernel that has what this host's may lack, and the guest that runs unit tests under it. Included by the Makefile.

$(B)/guest/nested-vmlinuz: tests/nested/kernel.sh tests/nested/kernel.config
	@printf '  %-7s %s\n' KERNEL $@
	@tests/nested/kernel.sh $(@D)

# The programs that have something to look at there.
NESTED := test_idle

nested: deps ## unit tests in a guest whose kernel has a bitmap of idle pages; the kernel is built once, in minutes
	$(Q)tests/deps.sh nested
	$(Q)$(MAKE) $(NESTED:%=$(B)/tests/unit/%) $(B)/guest/nested-vmlinuz
	$(Q)python3 -B tests/nested/nested.py --build $(B) $(NESTED)

.PHONY: nested
