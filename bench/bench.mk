# SPDX-License-Identifier: GPL-2.0-only
# The programs of `make bench-paging`, into build/bench. To be included by the Makefile.

BENCH_PAGING := $(B)/bench/paging-workload $(B)/bench/paging-pager $(GB)/initramfs-paging

$(B)/bench/paging-%: $(O)/bench/paging/%.o $(O)/bench/paging/memory.o $(O)/bench/paging/pattern.o $(B)/libcriu-vm.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# The workload is all that runs in a guest, at its serial port.
$(GB)/paging-workload: $(wildcard bench/paging/*.h) bench/paging/workload.c bench/paging/memory.c bench/paging/pattern.c
	$(call say,GUEST,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(GCC) -std=gnu17 -O2 $(WARN) -D_GNU_SOURCE -I. -static -pthread -o $@ $(filter %.c,$^) -lm

$(GB)/initramfs-paging: $(GB)/paging-workload $(GB)/vmlinuz bench/paging/init
	$(call say,CPIO,$@)
	$(Q)rm -rf $@.d && mkdir -p $@.d/bin
	$(Q)cp -r $(GB)/modules bench/paging/init $@.d
	$(Q)strip -o $@.d/workload $(GB)/paging-workload && cp /bin/busybox $@.d/bin
	$(Q)(cd $@.d && find . | cpio --quiet -o -H newc) > $@
	$(Q)rm -rf $@.d

$(B)/bench/queues: $(O)/bench/queues.o $(B)/libcriu-vm.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LDFLAGS_ALL) $(LDFLAGS) -o $@ $^ $(LDLIBS)

bench-queues: deps $(B)/bench/queues ## what the chunk queues cost at 24 TB
	$(Q)$(B)/bench/queues

.PHONY: bench-queues
