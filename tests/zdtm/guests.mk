# SPDX-License-Identifier: GPL-2.0-only
# The guests of tests/zdtm, into build/guest: a multiboot image for each guest without an operating system; kernel and
# initramfs of the Linux one. To be included by the Makefile, or: make -f tests/zdtm/guests.mk guests

B   ?= build
GB  := $(B)/guest
GS  := tests/zdtm/guest
GCC := gcc

BARE_GUESTS := memory touch timer smp disk rewrite idle
BARE_CFLAGS := -std=gnu17 -O2 -g -Wall -Wextra -Wshadow -m64 -ffreestanding -fno-pic -no-pie -fno-stack-protector \
	       -fno-asynchronous-unwind-tables -mno-red-zone -mgeneral-regs-only
BARE_LDFLAGS := -nostdlib -static -Wl,--build-id=none,-z,max-page-size=4096,--no-warn-rwx-segments

guests: $(BARE_GUESTS:%=$(GB)/%.elf) $(GB)/vmlinuz $(GB)/initramfs

# 64-bit code in the 32-bit ELF file that a multiboot loader takes; NAME.debug has its symbols.
$(GB)/%.elf: $(GS)/%.c $(GS)/boot.S $(GS)/guest.c $(GS)/guest.h $(GS)/pattern.h $(GS)/guest.ld
	@printf '  %-7s %s\n' GUEST $@
	@mkdir -p $(@D)
	@$(GCC) $(BARE_CFLAGS) $(BARE_LDFLAGS) -T $(GS)/guest.ld -o $(@:.elf=.debug) $(GS)/boot.S $(GS)/guest.c $<
	@objcopy -g -O elf32-i386 $(@:.elf=.debug) $@

$(GB)/vmlinuz: tests/guest-kernel.sh
	@printf '  %-7s %s\n' KERNEL $@
	@tests/guest-kernel.sh $(GB)
	@touch $@

$(GB)/checker: tests/zdtm/linux/checker.c $(GS)/pattern.h
	@printf '  %-7s %s\n' GUEST $@
	@mkdir -p $(@D)
	@$(GCC) -std=gnu17 -O2 -g -Wall -Wextra -Wshadow -D_GNU_SOURCE -static -pthread -o $@ $<

$(GB)/initramfs: $(GB)/checker $(GB)/vmlinuz tests/zdtm/linux/init
	@printf '  %-7s %s\n' CPIO $@
	@rm -rf $@.d && mkdir -p $@.d/bin
	@cp -r $(GB)/modules tests/zdtm/linux/init $@.d
	@strip -o $@.d/checker $(GB)/checker && cp /bin/busybox $@.d/bin
	@(cd $@.d && find . | cpio --quiet -o -H newc) > $@
	@rm -rf $@.d

.PHONY: guests
